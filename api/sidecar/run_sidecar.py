"""Runs a sidecar until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from kvtrie.api.http.address import Address
from kvtrie.api.http.connection_table import KEEP_ALIVE_SECONDS, ConnectionTable
from kvtrie.api.http.listeners import Listener, check_addresses, listening
from kvtrie.api.http.record_frames import Limits
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.http.watched_protocol import Sweeper, WatchedProtocol
from kvtrie.api.sidecar.app import create_app
from kvtrie.api.sidecar.sidecar import Sidecar

GRACE_SECONDS = 5
"""Time that requests in progress get to finish after SIGTERM or SIGINT."""
_ACCEPTED_AT_ONCE = 128
"""Connections that the event loop takes at a time: so many may be open before the first of them is counted."""
_OTHER_FILES = 64
"""Descriptors besides connections of clients: listeners, the store's connections, the trace."""
_LOG = logging.getLogger(__name__)


def serve(
    sidecar: Sidecar,
    tenants: Tenants,
    addresses: Sequence[Address],
    announce: Callable[[list[Listener]], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then lets requests finish and removes socket files.

    `announce` is called once the sockets accept connections. The caller closes `sidecar`.

    Raises:
        InputError: it may not, or cannot, listen on one of `addresses`.
    """
    check_addresses(addresses, with_tenants=not tenants.is_open)
    connections = ConnectionTable(_within_open_files(sidecar.limits))
    protocol = partial(WatchedProtocol, connections, Sweeper(connections))
    with listening(addresses) as listeners, _surviving_signals():
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(sidecar, tenants, connections),
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
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        announce(listeners)
        server.run(sockets=[listener.socket for listener in listeners])


def _within_open_files(limits: Limits) -> Limits:
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
def _surviving_signals() -> Iterator[None]:
    """Ignores the signal that uvicorn raises once more when it has stopped, until socket files are removed."""

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
