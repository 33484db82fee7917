"""The OpenAPI document of a sidecar: every route, its bodies, and what it may answer.

Written by hand: bodies are binary (`record_frames.py`) and the routes take bare requests, so nothing could be
derived.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvtrie.api.http.record_frames import SCOPE_HEADER, Limits
from kvtrie.api.sidecar.metrics import CONTENT_TYPE
from kvtrie.prefix_tree.keys import KEY_BYTES, TOKEN_BYTES
from kvtrie.store.record import DIGEST_BYTES

OCTETS = "application/octet-stream"

_COUNT = {"type": "integer", "minimum": 0}
_DIGEST = {"type": "string", "pattern": f"^[0-9a-f]{{{2 * DIGEST_BYTES}}}$"}
_REFUSALS = {
    400: "The request is malformed.",
    401: "The API key is unknown.",
    403: "The caller may not do this, or a web page sent the request.",
    408: "The request took too long.",
    413: "The body is too large.",
    429: "Too much at once: connections of one key, bodies being received, or wrong keys.",
    503: "Every connection that may be served has a request under way.",
}


def openapi_document(limits: Limits, *, with_keys: bool) -> dict[str, Any]:
    """The document, of OpenAPI 3.1.

    Args:
        limits: of the sidecar: how long bodies may be.
        with_keys: whether routes need an API key, or there is one open tenant.
    """
    lookup = f"namespace digest ({DIGEST_BYTES} bytes), then"
    readiness = _object(ready={"type": "boolean"}, store={"enum": ["none", "ok", "unavailable"]})
    paths = {
        "/v1/match": _post(
            "How many whole chunks of a prompt the host tier holds. The last token is always left to compute.",
            f"{lookup} tokens (int32 each, at most {limits.max_tokens})",
            DIGEST_BYTES + limits.max_tokens * TOKEN_BYTES,
            _json("The longest held prefix.", _object(chunks=_COUNT, tokens=_COUNT)),
        ),
        "/v1/records/get": _post(
            "Records of the longest held prefix of chunk keys, which may begin at any depth.",
            f"{lookup} chunk keys ({KEY_BYTES} bytes each, at most {limits.max_keys})",
            DIGEST_BYTES + limits.max_keys * KEY_BYTES,
            _reply(
                "Frames, each a length (u64) and a record.", OCTETS, {"type": "string", "format": "binary"}
            ),
        ),
        "/v1/records/put": _post(
            "Keeps records. What came before a broken frame is kept, too.",
            "frames in path order, each a length (u64) and a record",
            limits.max_body_bytes,
            _json(
                "What became of them.",
                _object(
                    stored=_COUNT,
                    held={**_COUNT, "description": "Records that were there already."},
                    rejected={"type": "object", "additionalProperties": _COUNT, "description": "By reason."},
                    unnamed={
                        "type": "array",
                        "items": _DIGEST,
                        "description": "Namespaces whose namespace record is not held: send it again.",
                    },
                ),
            ),
        ),
        "/v1/tree": _get(
            "A snapshot of what the caller may see, as `kvtrie dump`, `explain` and `stats` read it.",
            _json("The snapshot.", {"type": "object", "required": ["format", "version", "nodes"]}),
            refused=(401, 403, 408, 429, 503),
        ),
        "/metrics": _get(
            "Figures for Prometheus; where tenants are configured, for the admin's key only.",
            _reply("Prometheus' text format.", CONTENT_TYPE.partition(";")[0], {"type": "string"}),
            refused=(401, 403, 408, 429, 503),
        ),
        "/livez": _get(
            "Whether the process answers. It does so even where every connection is in use.",
            _json("It does.", _object(live={"const": True})),
            refused=(403,),
        ),
        "/readyz": _get(
            "Whether it is of use, and what the store behind it says.",
            _json("It is.", readiness),
            refused=(403, 408),
        ),
        "/openapi.json": _get("This document.", _json("It.", {"type": "object"}), refused=(403, 503)),
    }
    # Not ready, or no place: the same status, told apart by the body.
    paths["/readyz"]["get"]["responses"]["503"] = _json(
        "It is not; or every connection that may be served has a request under way.",
        {"oneOf": [readiness, {"$ref": "#/components/schemas/Error"}]},
    )
    for path in ("/livez", "/readyz", "/openapi.json"):
        paths[path]["get"]["security"] = []
    error = _object(error={"type": "string", "description": "One sentence."})
    components: dict[str, Any] = {"schemas": {"Error": error}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "kvtrie sidecar",
            "version": _version(),
            "description": "A cache of KV records for the model servers of one host. Integers are little-endian.",
        },
        "paths": paths,
        "components": components,
    }
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _post(summary: str, body: str, most_bytes: int, reply: dict[str, Any]) -> dict[str, Any]:
    scope = {
        "name": SCOPE_HEADER,
        "in": "header",
        "description": "A shared scope by its name, instead of the caller's own.",
        "schema": {"type": "string"},
    }
    content = {OCTETS: {"schema": {"type": "string", "format": "binary", "maxLength": most_bytes}}}
    operation = {
        "summary": summary,
        "parameters": [scope],
        "requestBody": {"required": True, "description": f"{body[0].upper()}{body[1:]}.", "content": content},
        "responses": {"200": reply, **_refusals(_REFUSALS)},
    }
    return {"post": operation}


def _get(summary: str, reply: dict[str, Any], refused: tuple[int, ...]) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": reply, **_refusals(refused)}}}


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {str(status): _json(_REFUSALS[status], schema) for status in statuses}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return _reply(description, "application/json", schema)


def _reply(description: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _version() -> str:
    try:
        return version("kvtrie")
    # Run from a checkout that is not installed.
    except PackageNotFoundError:
        return "0"
