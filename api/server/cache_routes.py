"""Routes that look into the cache: its tree, why a prompt missed, and pins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from kvtrie.api.http.tenants import NAME, Caller
from kvtrie.api.inspection.explain import explain
from kvtrie.api.inspection.explanation import Question, explanation_document
from kvtrie.api.inspection.snapshot_filter import only_scope
from kvtrie.api.server.answered_chats import ChatDigest
from kvtrie.api.server.api_error import ApiError
from kvtrie.api.server.checked_request import check_tokens, parse
from kvtrie.api.server.pin_shelf import PinShelf
from kvtrie.api.server.replies import PinDeleted, PinList
from kvtrie.api.server.requests import CachedPrompt, ExplainRequest, PinRequest
from kvtrie.api.server.served_model import ServedModel
from kvtrie.prefix_tree.errors import AccessDenied

T = TypeVar("T")


class ReadBody(Protocol):
    """Who sent a request, and what is made of its body in a thread."""

    def __call__(self, request: Request, work: Callable[[bytes, Caller], T]) -> Awaitable[tuple[Caller, T]]:
        """See above."""


def add_cache_routes(app: FastAPI, model: ServedModel, read: ReadBody) -> None:
    """Adds the routes below /v1/cache."""
    door, cached = model.door, model.generation.model
    pins = PinShelf(cached)

    # 1. The tree, and why a prompt missed.
    @app.get("/v1/cache/tree")
    async def tree(request: Request) -> Response:
        caller = door.caller(request)

        def shown() -> str:
            snapshot = cached.take_snapshot()
            return (snapshot if caller.is_admin else only_scope(snapshot, _own(caller))).to_json()

        return Response(await model.looking.run(shown), media_type="application/json")

    @app.post("/v1/cache/explain")
    async def why(request: Request) -> Response:
        def asked(body: bytes, caller: Caller) -> tuple[ExplainRequest, list[int]]:
            found = parse(ExplainRequest, body)
            return found, _tokens(model, found, caller)

        caller, (question, tokens) = await read(request, asked)
        scope = _scope_asked(caller, question.tenant)

        def explained() -> dict[str, Any]:
            found = explain(
                cached.take_snapshot(),
                tokens,
                Question(
                    scope,
                    [f"shared:{name}" for name in caller.reads],
                    context_tokens=question.context_tokens,
                ),
            )
            has_text = model.served.text.optional_tokenizer is not None
            return explanation_document(found, model.served.text.decode if has_text else None)

        return JSONResponse(await model.looking.run(explained))

    # 2. Pins.
    @app.post("/v1/cache/pins")
    async def pin(request: Request) -> Response:
        def asked(body: bytes, caller: Caller) -> tuple[PinRequest, list[int]]:
            found = parse(PinRequest, body)
            return found, _tokens(model, found, caller)

        caller, (wanted, tokens) = await read(request, asked)
        _own(caller)
        card = await model.looking.run(lambda: pins.pin(tokens, caller.name, wanted.name, wanted.ttl_seconds))
        return Response(card.model_dump_json(), media_type="application/json")

    @app.get("/v1/cache/pins")
    async def all_pins(request: Request) -> Response:
        scope = _seen(door.caller(request))
        return Response(PinList(data=pins.cards(scope)).model_dump_json(), media_type="application/json")

    @app.delete("/v1/cache/pins/{pin_id}")
    async def unpin(request: Request, pin_id: str) -> Response:
        scope = _seen(door.caller(request))
        if not await model.looking.run(lambda: pins.unpin(pin_id, scope)):
            raise ApiError(404, f"there is no pin {pin_id[:64]!a}: it may have expired")
        return Response(PinDeleted(id=pin_id, deleted=True).model_dump_json(), media_type="application/json")


def _own(caller: Caller) -> str:
    """The caller's own scope."""
    if caller.own_scope is None:
        raise AccessDenied("the admin key has no cache of its own: use a tenant's key")
    return caller.own_scope


def _seen(caller: Caller) -> str | None:
    """The scope whose pins a caller sees; None for all."""
    return None if caller.is_admin else _own(caller)


def _scope_asked(caller: Caller, tenant: str | None) -> str | None:
    """The scope that an explanation is for; None for a question about the whole tree, which is the admin's."""
    if tenant is None or tenant == caller.name:
        return caller.own_scope
    if not caller.is_admin:
        raise AccessDenied(f"tenant {caller.name} may ask about its own requests only")
    if not NAME.match(tenant):
        raise ApiError(400, f"{tenant!a} is no tenant's name", param="tenant")
    return f"tenant:{tenant}"


def _tokens(model: ServedModel, asked: CachedPrompt, caller: Caller) -> list[int]:
    given = [name for name in ("prompt", "messages", "tokens") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise ApiError(400, f"send one of prompt, messages and tokens, got {given or 'none'}")
    text = model.served.text
    if asked.messages is not None:
        besides = [[tool.model_dump() for tool in asked.tools or ()], {}]
        digest = ChatDigest(caller.name, "", besides)
        opens = asked.add_generation_prompt
        tokens = text.chat(model.served.chats, digest, asked.messages, asked.tools, opens_reply=opens).tokens
    elif asked.prompt is not None:
        tokens = text.text(asked.prompt)
    else:
        tokens = asked.tokens or []
    check_tokens(model.served, tokens, given[0])
    return tokens
