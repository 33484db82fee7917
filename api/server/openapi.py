"""The OpenAPI document of a server: every route, and the forms of its bodies as pydantic checks them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kvtrie.api.http.metrics_page import CONTENT_TYPE
from kvtrie.api.server import replies, requests
from kvtrie.api.server.server_config import ServerConfig

_Mode = Literal["validation", "serialization"]
_SENT: tuple[type[BaseModel], ...] = (
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.TokenizeRequest,
    requests.DetokenizeRequest,
    requests.ExplainRequest,
    requests.PinRequest,
)
_ANSWERED: tuple[type[BaseModel], ...] = (
    replies.ChatReply,
    replies.ChatChunk,
    replies.CompletionReply,
    replies.DetokenizeReply,
    replies.Error,
    replies.ExplainReply,
    replies.Liveness,
    replies.ModelCard,
    replies.ModelList,
    replies.PinCard,
    replies.PinDeleted,
    replies.PinList,
    replies.Readiness,
    replies.TokenizeReply,
)
_REFUSALS = {
    400: "The request is malformed, or asks for what is not served.",
    401: "The API key is unknown.",
    403: "The caller may not do this, or a web page sent the request.",
    404: "There is no such model, or no such thing.",
    408: "The request took too long.",
    409: "The scope's pins would hold more than they may.",
    413: "The body is too large.",
    429: "Too much at once: requests that wait, connections of one key, bodies being received, or wrong keys.",
    500: "Computing the answer failed.",
    503: "The engine has failed, the server is stopping, or no connection is free.",
}
_LOOKING = (401, 403, 408, 429, 503)
_SENDING = (400, 401, 403, 404, 408, 413, 429, 500, 503)


def openapi_document(config: ServerConfig, *, with_keys: bool) -> dict[str, Any]:
    """The document, of OpenAPI 3.1.

    Args:
        config: of the server: how long bodies may be.
        with_keys: whether routes need an API key.
    """
    pin_id = _parameter("pin_id", "The pin's id.")
    name = _parameter("name", "A served name.")
    paths = {
        "/v1/chat/completions": _answering(
            "Answers a chat.", "ChatRequest", "ChatReply", "ChatChunk", config.max_body_bytes
        ),
        "/v1/completions": _answering(
            "Continues prompts.",
            "CompletionRequest",
            "CompletionReply",
            "CompletionReply",
            config.max_body_bytes,
        ),
        "/v1/models": _get("The served model, by each of its names.", _json("They.", "ModelList"), _LOOKING),
        "/v1/models/{name}": _get(
            "One of them.", _json("It.", "ModelCard"), (*_LOOKING, 404), parameters=[name]
        ),
        "/tokenize": _post("Token ids of a text or of messages.", "TokenizeRequest", "TokenizeReply"),
        "/detokenize": _post("The text of token ids.", "DetokenizeRequest", "DetokenizeReply"),
        "/v1/cache/tree": _get(
            "A snapshot of what the caller may see, as `kvtrie dump`, `explain` and `stats` read it.",
            _reply(
                "The snapshot.",
                "application/json",
                {"type": "object", "required": ["format", "version", "nodes"]},
            ),
            _LOOKING,
        ),
        "/v1/cache/explain": _post(
            "Why a prompt misses the cache, or how much of it hits.", "ExplainRequest", "ExplainReply"
        ),
        "/v1/cache/pins": {
            **_post("Computes a prompt and keeps its chunks.", "PinRequest", "PinCard", also=(409,)),
            **_get("Pins in force.", _json("They.", "PinList"), _LOOKING),
        },
        "/v1/cache/pins/{pin_id}": {
            "delete": _get(
                "Ends a pin.", _json("It has ended.", "PinDeleted"), (*_LOOKING, 404), parameters=[pin_id]
            )["get"]
        },
        "/metrics": _get(
            "Figures for Prometheus; where tenants are configured, for the admin's key only.",
            _reply("Prometheus' text format.", CONTENT_TYPE.partition(";")[0], {"type": "string"}),
            _LOOKING,
        ),
        "/livez": _get("Whether the process answers.", _json("It does.", "Liveness"), (403,)),
        "/readyz": _get("Whether requests are served.", _json("They are.", "Readiness"), (403, 408)),
        "/openapi.json": _get(
            "This document.", _reply("It.", "application/json", {"type": "object"}), (403, 503)
        ),
    }
    # Not ready, or no free connection: the same status, told apart by the body.
    either = {"oneOf": [_ref("Readiness"), _ref("Error")]}
    paths["/readyz"]["get"]["responses"]["503"] = _reply(_REFUSALS[503], "application/json", either)
    for path in ("/livez", "/readyz", "/openapi.json"):
        paths[path]["get"]["security"] = []
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "kvtrie serve",
            "version": _version(),
            "description": "OpenAI's API over a model whose prompts are computed once per prefix.",
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _schemas() -> dict[str, Any]:
    sent: list[tuple[type[BaseModel], _Mode]] = [(form, "validation") for form in _SENT]
    answered: list[tuple[type[BaseModel], _Mode]] = [(form, "serialization") for form in _ANSWERED]
    _, found = models_json_schema([*sent, *answered], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def _answering(summary: str, sent: str, whole: str, event: str, most_bytes: int) -> dict[str, Any]:
    path = _post(summary, sent, whole)
    path["post"]["description"] = f"The body may have at most {most_bytes} bytes."
    reply = path["post"]["responses"]["200"]
    reply["description"] = "The answer; with `stream` true, events of which each is a chunk of it."
    # Without a type: some tools check the whole text by it, and some each event taken apart.
    event_form = {"description": f"Each event's data is a {event}, and the last one's `[DONE]`."}
    reply["content"]["text/event-stream"] = {"schema": event_form}
    return path


def _post(summary: str, sent: str, answered: str, also: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(sent)}}},
            "responses": {"200": _json("Done.", answered), **_refusals((*_SENDING, *also))},
        }
    }


def _get(
    summary: str,
    reply: dict[str, Any],
    refused: Iterable[int],
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": reply, **_refusals(refused)}}
    if parameters:
        operation["parameters"] = parameters
    return {"get": operation}


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
    }


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): _json(_REFUSALS[status], "Error") for status in sorted(statuses)}


def _json(description: str, form: str) -> dict[str, Any]:
    return _reply(description, "application/json", _ref(form))


def _reply(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _ref(form: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{form}"}


def _version() -> str:
    try:
        return version("kvtrie")
    # Run from a checkout that is not installed.
    except PackageNotFoundError:
        return "0"
