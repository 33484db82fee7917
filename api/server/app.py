"""The server's routes: parse, call, reply. `docs/serve.md` has each with a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from kvtrie.api.http.byte_budget import BudgetExceeded
from kvtrie.api.http.metrics_page import CONTENT_TYPE
from kvtrie.api.http.request_body import whole_body
from kvtrie.api.http.request_guard import RequestGuard
from kvtrie.api.http.tenants import Caller
from kvtrie.api.server.answer import Answer
from kvtrie.api.server.api_error import ApiError, guard_error, kvtrie_error
from kvtrie.api.server.cache_routes import add_cache_routes
from kvtrie.api.server.checked_request import CheckedRequest, check_chat, check_completion, model_named, parse
from kvtrie.api.server.openapi import openapi_document
from kvtrie.api.server.replies import (
    DetokenizeReply,
    Liveness,
    ModelList,
    Readiness,
    TokenizeReply,
)
from kvtrie.api.server.reply_notes import ReplyNotes
from kvtrie.api.server.requests import DetokenizeRequest, TokenizeRequest
from kvtrie.api.server.served_model import ServedModel
from kvtrie.api.server.until_gone import EventStream, until_gone
from kvtrie.prefix_tree.errors import AccessDenied, KvtrieError

T = TypeVar("T")


def create_app(model: ServedModel) -> ASGIApp:
    """The server as an ASGI application; `model` stays the caller's to start and stop."""
    # 1. How every route reads a body, and how the two that generate reply.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    served, door, config = model.served, model.door, model.config

    async def read(request: Request, work: Callable[[bytes, Caller], T]) -> tuple[Caller, T]:
        """Who sent a request, and what `work` makes of its body in a thread."""
        caller = door.caller(request)
        with door.receiving.charge(caller.name) as charge:
            try:
                with anyio.fail_after(config.body_seconds):
                    body = await whole_body(request, config.max_body_bytes, charge)
            except TimeoutError:
                seconds = f"{config.body_seconds:g} s"
                raise ApiError(408, f"the body took longer than {seconds}", headers=_CLOSE) from None
            return caller, await model.pool.run(lambda: work(body, caller))

    async def answer(
        request: Request, work: Callable[[bytes, Caller], CheckedRequest], *, is_chat: bool
    ) -> Response:
        caller, checked = await read(request, work)
        if caller.own_scope is None:
            raise AccessDenied("the admin key has no cache of its own: use a tenant's key")
        answer = Answer(checked, caller, model.metrics, served, is_chat=is_chat)
        try:
            await answer.begin(model.generation, model.pool)
            if checked.is_stream:
                return EventStream(answer.events(), config.stall_seconds, answer.end)
            await until_gone(request.receive, answer.all_of_it())
            content = await model.pool.run(lambda: answer.reply().model_dump_json())
            return Response(content, media_type="application/json")
        finally:
            if not checked.is_stream:
                answer.end()

    # 2. The routes.
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, lambda body, caller: check_chat(served, body, caller.name), is_chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, lambda body, _: check_completion(served, body), is_chat=False)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        door.caller(request)
        return _json(ModelList(data=model.cards()))

    @app.get("/v1/models/{name:path}")
    async def one_model(request: Request, name: str) -> Response:
        door.caller(request)
        for card in model.cards():
            if card.id == name:
                return _json(card)
        raise ApiError(404, f"the model {name[:100]!a} is not served", code="model_not_found")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return _json((await read(request, lambda body, _: _tokenized(model, body)))[1])

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return _json((await read(request, lambda body, _: _detokenized(model, body)))[1])

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not door.caller(request).is_admin:
            raise AccessDenied("metrics are about all tenants: use the admin key")
        engine = model.generation.model.engine
        figures = await model.looking.run(model.generation.model.stats)
        page = model.metrics.page(figures, engine.running, engine.waiting)
        return Response(page + door.metrics(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/livez")
    async def livez() -> Response:
        return _json(Liveness())

    @app.get("/readyz")
    async def readyz() -> Response:
        state = model.generation.state
        return _json(Readiness(ready=state == "ok", engine=state), 200 if state == "ok" else 503)

    add_cache_routes(app, model, read)
    document = openapi_document(config, with_keys=not door.tenants.is_open)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document)

    _add_error_replies(app)
    noted = ReplyNotes(app, model.metrics.statuses, document["paths"])
    return RequestGuard(
        noted,
        door.connections,
        config.limits,
        loopback_names_only=door.tenants.is_open,
        error_body=guard_error,
    )


_CLOSE = {"Connection": "close"}


def _add_error_replies(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        said = str(error.detail)
        if error.status_code == 404:
            said = f"there is no {request.method} {request.url.path[:100]}"
        code = "invalid_api_key" if error.status_code == 401 else None
        found = ApiError(error.status_code, said, code=code, headers=error.headers)
        return await refused(request, found)

    @app.exception_handler(BudgetExceeded)
    async def crowded(request: Request, _: BudgetExceeded) -> Response:
        said = "too much is being received: send less at once, or try again"
        return await refused(request, ApiError(429, said, headers={"Retry-After": "1"}))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, _: ClientDisconnect) -> Response:
        return await refused(request, ApiError(400, "the client left"))

    @app.exception_handler(KvtrieError)
    async def failed(request: Request, error: KvtrieError) -> Response:
        return await refused(request, kvtrie_error(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return await refused(request, kvtrie_error(error))


def _json(reply: BaseModel, status: int = 200) -> Response:
    return Response(reply.model_dump_json(), status, media_type="application/json")


def _tokenized(model: ServedModel, body: bytes) -> TokenizeReply:
    asked = parse(TokenizeRequest, body)
    model_named(model.served, asked.model)
    text = model.served.text
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "send either prompt or messages", param="prompt")
    if asked.messages is not None:
        tokens = text.messages(
            asked.messages,
            asked.tools,
            opens_reply=asked.add_generation_prompt,
            continues_last=asked.continue_final_message,
            variables=asked.chat_template_kwargs,
        ).tokens
    else:
        tokens = text.text(asked.prompt or "", special_tokens=asked.add_special_tokens)
    spelled = text.spelled(tokens) if asked.return_token_strs else None
    return TokenizeReply(
        count=len(tokens), max_model_len=model.served.longest, tokens=tokens, token_strs=spelled
    )


def _detokenized(model: ServedModel, body: bytes) -> DetokenizeReply:
    asked = parse(DetokenizeRequest, body)
    model_named(model.served, asked.model)
    return DetokenizeReply(prompt=model.served.text.decode(asked.tokens))
