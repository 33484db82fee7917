"""Runs a sidecar until SIGTERM or SIGINT."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import uvicorn

from kvtrie.api.http.address import Address
from kvtrie.api.http.connection_table import ConnectionTable
from kvtrie.api.http.http_server import server_config, surviving_signals, within_open_files
from kvtrie.api.http.listeners import Listener, check_addresses, listening
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.sidecar.app import create_app
from kvtrie.api.sidecar.sidecar import Sidecar

GRACE_SECONDS = 5
"""Time that requests in progress get to finish after SIGTERM or SIGINT."""


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
    connections = ConnectionTable(within_open_files(sidecar.limits))
    with listening(addresses) as listeners, surviving_signals():
        app = create_app(sidecar, tenants, connections)
        server = uvicorn.Server(server_config(app, connections, GRACE_SECONDS))
        announce(listeners)
        server.run(sockets=[listener.socket for listener in listeners])
