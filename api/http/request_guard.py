"""Checks that every request passes before it is read: a free place, a time limit, and no browser.

A page from anywhere can make a browser send requests to 127.0.0.1. Cross-origin ones carry `Origin`; those
that come through a rebound DNS name carry that name as `Host`. An open server answers neither: it would
hand prompts to any web site its user visits.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvtrie.api.http.connection_table import Connection, ConnectionTable
from kvtrie.api.http.record_frames import Limits
from kvtrie.api.http.watched_protocol import STATE

LONGEST_REFUSED_BODY = 64 << 20
"""A refused request's body is read to its end, up to this, and for no longer than a head may take. A connection
closed before that is reset, and the sender never learns why it was refused: it would take a 403 for an outage."""


def plain_error(_: int, sentence: str) -> object:
    """A refusal as a sidecar says it."""
    return {"error": sentence}


class RequestGuard:
    """ASGI middleware.

    Args:
        connections: is notified when a request begins and ends on one of its connections.
        limits: `request_seconds` bounds one request, reading its body and sending the reply included.
        loopback_names_only: refuse TCP requests whose `Host` is no loopback name.
        error_body: the JSON body of a refusal, made of its status and one sentence.
    """

    def __init__(
        self,
        app: ASGIApp,
        connections: ConnectionTable,
        limits: Limits,
        *,
        loopback_names_only: bool,
        error_body: Callable[[int, str], object] = plain_error,
    ) -> None:
        self._app = app
        self._connections = connections
        self._request_seconds = limits.request_seconds
        self._refused_seconds = limits.header_seconds
        self._max_connections = limits.max_connections
        self._loopback_names_only = loopback_names_only
        self._error_body = error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection: Connection | None = scope.get("state", {}).get(STATE)
        if connection is None:
            await self._answer(scope, receive, send)
            return
        self._connections.began(connection)
        try:
            # /livez must be answered even where nothing else can be.
            if connection.is_spare and scope["path"] != "/livez":
                await self._refuse(send, 503, f"{self._max_connections} connections are in use: try again")
            else:
                await self._answer(scope, receive, send)
        finally:
            self._connections.ended(connection)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        # 1. Refuse what a web page may have sent.
        if b"origin" in headers:
            await self._refuse(send, 403, "requests from web pages are not answered")
            return
        over_tcp = scope.get("server") is not None and scope["server"][1] is not None
        if over_tcp and self._loopback_names_only and not is_loopback_host(headers.get(b"host", b"")):
            await self._refuse(
                send, 403, "without a tenants file the Host header must be localhost or a loopback address"
            )
            return
        # 2. A refused body is read to its end if that is near, so that the client sees the reply.
        started = body_read = False

        async def noting_end() -> Message:
            nonlocal body_read
            message = await receive()
            body_read = not message.get("more_body", False)
            return message

        async def noting_start(message: Message) -> None:
            nonlocal started
            if (
                message["type"] == "http.response.start"
                and message["status"] >= 400
                and _worth_reading(headers)
            ):
                size = 0
                with anyio.move_on_after(self._refused_seconds):
                    while not body_read and size <= LONGEST_REFUSED_BODY:
                        size += len((await noting_end()).get("body", b""))
                if not body_read:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            started = True
            await send(message)

        # 3. The request, within its time.
        with anyio.move_on_after(self._request_seconds) as limit:
            await self._app(scope, noting_end, noting_start)
        # Once a reply has begun it can only be cut: the server closes the connection of an unfinished one.
        if limit.cancelled_caught and not started:
            await self._refuse(send, 408, f"the request took longer than {self._request_seconds:g} s")

    async def _refuse(self, send: Send, status: int, error: str) -> None:
        body = json.dumps(self._error_body(status, error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_loopback_host(header: bytes) -> bool:
    """Whether a `Host` header names this machine to itself: `localhost`, or a loopback address."""
    text = header.decode("latin-1").strip().lower()
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::[0-9]*)?", text)
    if found is None:
        return False
    name = found[1].strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _worth_reading(headers: dict[bytes, bytes]) -> bool:
    """Whether a refused body may end soon, and is not held back until it is asked for."""
    announced = headers.get(b"content-length", b"0")
    fits = not announced.isdigit() or int(announced) <= LONGEST_REFUSED_BODY
    return fits and b"expect" not in headers
