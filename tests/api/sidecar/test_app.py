"""Limits of one request, on the application itself: what is too slow or too long is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from kvtrie.api.http.record_frames import Limits
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.sidecar.app import create_app
from kvtrie.api.sidecar.sidecar import Sidecar, SidecarConfig


async def slowly() -> AsyncIterator[bytes]:
    yield b"\xff" + bytes(7)
    while True:
        yield b"\1"
        await anyio.sleep(0.02)


async def endlessly() -> AsyncIterator[bytes]:
    while True:
        yield b"\1\0\0\0\0\0\0\0x" * 10


def post(body: AsyncIterator[bytes], limits: Limits) -> httpx.Response:
    app = create_app(Sidecar(SidecarConfig(), limits), Tenants())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/v1/records/put", content=body)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("body", "limits", "status"),
    [
        (slowly, Limits(request_seconds=0.2), 408),
        (endlessly, Limits(max_body_bytes=1000), 413),
    ],
)
def test_a_body_is_cut_off(body: type, limits: Limits, status: int) -> None:
    reply = post(body(), limits)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]


def test_an_internal_error_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Sidecar, "match", fail)
    app = create_app(Sidecar(), Tenants())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post("/v1/match", content=bytes(32))

    reply = asyncio.run(ask())
    assert reply.status_code == 500
    assert "secret" not in reply.text
