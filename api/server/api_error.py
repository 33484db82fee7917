"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from pydantic import ValidationError

from kvtrie.prefix_tree.errors import (
    AccessDenied,
    CapacityError,
    EngineStopped,
    InputError,
    PinBudgetExceeded,
    QueueFull,
)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""OpenAI's `type` of each status; of others it is `invalid_request_error`."""
TOO_LONG = "context_length_exceeded"
_LONGEST_MESSAGE = 500


class ApiError(Exception):
    """A refusal that has its status, and says which field of the body is at fault where one is."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = error_body(status, message, param=param, code=code)


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The JSON body of an error."""
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def guard_error(status: int, sentence: str) -> object:
    """The body of a request guard's refusal."""
    return error_body(status, sentence)


def validation_error(error: ValidationError) -> ApiError:
    """A body that is not JSON, or not of the route's form: the first thing that is wrong with it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}")
    param = ".".join(str(part) for part in first["loc"] if not _is_of_union(part)) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is not a field of this request", param=param, code="unknown_parameter")
    where = "the body" if param is None else param
    return ApiError(400, f"{where}: {first['msg']}"[:_LONGEST_MESSAGE], param=param)


def kvtrie_error(error: Exception) -> ApiError:
    """What the engine, the tree or the tokenizer refused; anything unexpected is an internal error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="engine_stopped")
    if isinstance(error, QueueFull):
        after = {"Retry-After": str(ceil(error.retry_after_seconds))}
        return ApiError(429, str(error), code="queue_full", headers=after)
    if isinstance(error, AccessDenied):
        return ApiError(403, str(error))
    if isinstance(error, PinBudgetExceeded):
        return ApiError(409, str(error), code="pin_budget_exceeded")
    if isinstance(error, (InputError, CapacityError)):
        return ApiError(400, str(error))
    return ApiError(500, "internal error: see the server's log")


def _is_of_union(part: int | str) -> bool:
    """Whether a part of an error's place names a form of a union, and no field."""
    return isinstance(part, str) and (part in ("str", "int", "float") or "[" in part)
