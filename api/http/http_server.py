"""What every server of ours runs in: uvicorn over sockets that are bound already, and the watched protocol."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from types import FrameType
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from kvtrie.api.http.connection_table import KEEP_ALIVE_SECONDS, ConnectionTable
from kvtrie.api.http.record_frames import Limits
from kvtrie.api.http.watched_protocol import Sweeper, WatchedProtocol

_ACCEPTED_AT_ONCE = 128
"""Connections that the event loop takes at a time: so many may be open before the first of them is counted."""
_OTHER_FILES = 64
"""Descriptors for what are no connections of clients: listeners, the store's, the trace."""
_LOG = logging.getLogger(__name__)


def server_config(app: ASGIApp, connections: ConnectionTable, grace_seconds: float) -> uvicorn.Config:
    """uvicorn's settings.

    Args:
        app: the application.
        connections: where connections are entered.
        grace_seconds: what requests in progress get to finish after a signal; rounded up to whole seconds.
    """
    protocol = partial(WatchedProtocol, connections, Sweeper(connections))
    return uvicorn.Config(
        app,
        # uvicorn calls it and asks no more of it than that.
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        proxy_headers=False,
        backlog=_ACCEPTED_AT_ONCE,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ceil(grace_seconds),
    )


def within_open_files(limits: Limits) -> Limits:
    """`limits` with no more connections than the process may open files, so that /livez always finds one."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    other = _ACCEPTED_AT_ONCE + limits.spare_connections + _OTHER_FILES
    if allowed == resource.RLIM_INFINITY or allowed >= limits.max_connections + other:
        return limits
    connections = max(1, allowed - other)
    _LOG.warning(
        "%d open files are allowed (ulimit -n): serving %d connections at once instead of %d",
        allowed,
        connections,
        limits.max_connections,
    )
    return replace(limits, max_connections=connections)


@contextmanager
def surviving_signals() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done; that must not end us before
    the socket files are gone."""

    def ignore(_: int, __: FrameType | None) -> None:
        return None

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
