"""The sidecar's routes: parse, call, reply. `docs/sidecar.md` has each with a command.

A new route is described in `openapi.py` too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from kvtrie.api.http.byte_budget import BudgetExceeded, Charge
from kvtrie.api.http.connection_table import ConnectionTable
from kvtrie.api.http.record_frames import (
    SCOPE_HEADER,
    FrameReader,
    frame_header,
    framed_bytes,
    parse_get,
    parse_match,
)
from kvtrie.api.http.request_guard import RequestGuard
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.sidecar.door import Door
from kvtrie.api.sidecar.metrics import CONTENT_TYPE
from kvtrie.api.sidecar.openapi import OCTETS, openapi_document
from kvtrie.api.sidecar.sidecar import PutOutcome, Sidecar
from kvtrie.prefix_tree.errors import AccessDenied, InputError
from kvtrie.prefix_tree.keys import KEY_BYTES, TOKEN_BYTES
from kvtrie.store.record import DIGEST_BYTES

_SEND_TOGETHER = 1 << 18
"""Small records are sent in pieces of about this size."""
_BESIDE_BYTES = 1 << 20
"""Bytes received besides the longest frame: its length, and the beginning of the next frame."""


def create_app(sidecar: Sidecar, tenants: Tenants, connections: ConnectionTable | None = None) -> ASGIApp:
    """The sidecar as an ASGI application. The caller closes `sidecar`.

    The server enters its connections in `connections`; without one they are neither counted nor bounded.
    """
    # 1. What all requests share: limits, keys, room for bodies.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    limits, chunk_tokens = sidecar.limits, sidecar.config.chunk_tokens
    connections = connections if connections is not None else ConnectionTable(limits)
    door = Door(tenants, connections, sidecar.config.receive_budget_bytes)
    receiving = door.receiving
    max_frame_bytes = min(limits.max_record_bytes, receiving.longest_bytes - _BESIDE_BYTES)

    # 2. Records of one scope.
    @app.post("/v1/match")
    async def match(request: Request) -> Response:
        caller = door.caller(request)
        scope = caller.reading(request.headers.get(SCOPE_HEADER))
        with receiving.charge(caller.name) as charge:
            body = await _body(request, DIGEST_BYTES + limits.max_tokens * TOKEN_BYTES, charge)
        lookup = parse_match(body)
        chunks = sidecar.match(scope, lookup.namespace, lookup.rest)
        return JSONResponse({"chunks": chunks, "tokens": chunks * chunk_tokens})

    @app.post("/v1/records/get")
    async def get(request: Request) -> Response:
        caller = door.caller(request)
        scope = caller.reading(request.headers.get(SCOPE_HEADER))
        with receiving.charge(caller.name) as charge:
            body = await _body(request, DIGEST_BYTES + limits.max_keys * KEY_BYTES, charge)
        lookup = parse_get(body)
        records = await run_sync(sidecar.get, scope, lookup.namespace, lookup.keys)
        length = {"Content-Length": str(framed_bytes(records))}
        return StreamingResponse(_frames(records), headers=length, media_type=OCTETS)

    @app.post("/v1/records/put")
    async def put(request: Request) -> Response:
        caller = door.caller(request)
        scope = caller.writing(request.headers.get(SCOPE_HEADER))
        outcome, reader = PutOutcome(), FrameReader(max_frame_bytes)
        with receiving.charge(caller.name) as charge:
            async for piece in _pieces(request, limits.max_body_bytes):
                await charge.grow(len(piece))
                records = reader.feed(piece)
                if records:
                    await run_sync(sidecar.put, scope, records, outcome)
                    del records
                    charge.shrink_to(reader.unfinished_bytes)
        reader.finish()
        return JSONResponse(
            {
                "stored": outcome.stored,
                "held": outcome.held,
                "rejected": dict(sorted(outcome.rejected.items())),
                "unnamed": sorted(namespace.hex() for namespace in outcome.unnamed),
            }
        )

    # 3. The tree, figures and health.
    @app.get("/v1/tree")
    async def tree(request: Request) -> Response:
        visible = door.caller(request).visible()
        document = await run_sync(lambda: sidecar.snapshot(visible).to_json())
        return Response(document, media_type="application/json")

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not door.caller(request).is_admin:
            raise AccessDenied("metrics are about all tenants: use the admin key")
        return Response(sidecar.metrics() + door.metrics(), headers={"Content-Type": CONTENT_TYPE})

    document = openapi_document(limits, with_keys=not tenants.is_open)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document)

    @app.get("/livez")
    async def livez() -> Response:
        return JSONResponse({"live": True})

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = sidecar.is_usable()
        store = await run_sync(sidecar.store_state)
        # The sidecar stays ready without its store; hits are fewer.
        return JSONResponse({"ready": ready, "store": store}, 200 if ready else 503)

    # 4. Every error as `{"error": "one sentence"}`.
    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(InputError)
    async def unusable(_: Request, error: InputError) -> Response:
        return JSONResponse({"error": str(error)}, 403 if isinstance(error, AccessDenied) else 400)

    @app.exception_handler(BudgetExceeded)
    async def crowded(_: Request, __: BudgetExceeded) -> Response:
        said = "too much is being received: send less at once, or try again"
        return JSONResponse({"error": said}, 429, {"Retry-After": "1"})

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return JSONResponse({"error": "the client left"}, 400)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error: see the sidecar's log"}, 500)

    return RequestGuard(app, connections, limits, loopback_names_only=tenants.is_open)


async def _pieces(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
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


async def _body(request: Request, max_bytes: int, charge: Charge) -> bytes:
    pieces: list[bytes] = []
    async for piece in _pieces(request, max_bytes):
        await charge.grow(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


async def _frames(records: Sequence[bytes]) -> AsyncIterator[bytes]:
    """`record_frames.frame(records)` in pieces: a large record is sent as it is, uncopied."""
    together: list[bytes] = []
    size = 0
    for record in records:
        together.append(frame_header(record))
        if len(record) >= _SEND_TOGETHER:
            yield b"".join(together)
            yield record
            together, size = [], 0
            continue
        together.append(record)
        size += len(record)
        if size >= _SEND_TOGETHER:
            yield b"".join(together)
            together, size = [], 0
    if together:
        yield b"".join(together)
