"""Bodies of requests as they arrive, bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request

from kvtrie.api.http.byte_budget import Charge


async def body_pieces(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body as it arrives, cut off with 413 at `max_bytes`; at once where its length is announced."""
    too_large = HTTPException(413, f"the body may have at most {max_bytes} bytes", {"Connection": "close"})
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise too_large
        if piece:
            yield piece


async def whole_body(request: Request, max_bytes: int, charge: Charge) -> bytes:
    """All of the body, charged as it arrives; 413 where it has more than `max_bytes`."""
    pieces: list[bytes] = []
    async for piece in body_pieces(request, max_bytes):
        await charge.grow(len(piece))
        pieces.append(piece)
    return b"".join(pieces)
