"""Runs a sidecar until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from kvtrie.api.sidecar.address import Address
from kvtrie.api.sidecar.app import create_app
from kvtrie.api.sidecar.listeners import Listener, check_addresses, listening
from kvtrie.api.sidecar.sidecar import Sidecar
from kvtrie.api.sidecar.tenants import Tenants

GRACE_SECONDS = 5
"""What requests under way get to finish, after SIGTERM or SIGINT."""
KEEP_ALIVE_SECONDS = 30
"""Idle connections live longer than a client keeps them, so that the client is who lets go."""


def serve(
    sidecar: Sidecar,
    tenants: Tenants,
    addresses: Sequence[Address],
    announce: Callable[[list[Listener]], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then lets requests finish and removes socket files.

    `announce` is called once the sockets accept connections. `sidecar` stays the caller's to close.

    Raises:
        InputError: it may not, or cannot, listen on one of `addresses`.
    """
    check_addresses(addresses, with_tenants=not tenants.is_open)
    with listening(addresses) as listeners, _surviving_signals():
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(sidecar, tenants),
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=sidecar.limits.max_connections,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        announce(listeners)
        server.run(sockets=[listener.socket for listener in listeners])


@contextmanager
def _surviving_signals() -> Iterator[None]:
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
