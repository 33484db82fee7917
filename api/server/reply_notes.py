"""Counts replies by route and status, and gives each request an id."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ReplyNotes:
    """ASGI middleware.

    Args:
        statuses: counted here, by route and status.
        routes: paths that are counted by themselves; all others are `other`.
    """

    def __init__(self, app: ASGIApp, statuses: Counter[tuple[str, int]], routes: Collection[str]) -> None:
        self._app = app
        self._statuses = statuses
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._routes else "other"

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._statuses[path, message["status"]] += 1
                request_id = f"req-{uuid.uuid4().hex}".encode()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, noting)
