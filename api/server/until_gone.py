"""Replies that end when their client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled where the client goes away first. The body has been read before.

    Raises:
        ClientDisconnect: it went away.
    """
    tasks: tuple[asyncio.Task[T], asyncio.Task[None]]
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0] in done:
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events.

    Args:
        events: made to end where the client goes away, or leaves one unread for `stall_seconds`.
        on_end: called when the reply is over, however it ended.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], stall_seconds: float, on_end: Callable[[], None]
    ) -> None:
        self._events = events
        self._stall_seconds = stall_seconds
        self._on_end = on_end
        self.status_code = 200
        self.background = None
        # Proxies that buffer would hold tokens back.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await until_gone(receive, self._send_all(send))
        except ClientDisconnect:
            # Nobody is left to be answered.
            return
        finally:
            self._on_end()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for event in events:
                with anyio.move_on_after(self._stall_seconds) as limit:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                if limit.cancelled_caught:
                    raise ClientDisconnect
        await send({"type": "http.response.body", "body": b"", "more_body": False})
