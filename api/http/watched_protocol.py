"""uvicorn's HTTP protocol, with every connection entered in the server's table.

uvicorn has a time limit for idle connections and none for a request head that never ends, and it counts
connections without asking whose they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from kvtrie.api.http.connection_table import Connection, ConnectionTable

STATE = "kvtrie.connection"
"""Where a request's ASGI `state` has its `Connection`."""
SWEEP_SECONDS = 1.0
_CREDENTIALS = struct.Struct("3i")


class WatchedProtocol(asyncio.Protocol):
    """Passes everything on to uvicorn's own protocol, and notifies the table.

    Args:
        table: of the server.
        app_state: the server's state, which each request gets a copy of.
        rest: the arguments of uvicorn's protocol.
    """

    def __init__(
        self, table: ConnectionTable, sweeper: Sweeper, *, app_state: dict[str, Any], **rest: Any
    ) -> None:
        self._table = table
        self._sweeper = sweeper
        self._state = dict(app_state)
        self._inner: Any = cast(Any, AutoHTTPProtocol)(app_state=self._state, **rest)
        self._connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        connection = Connection(
            address_of(transport), transport.abort, transport.is_closing, self._sweeper.clock()
        )
        self._connection = self._state[STATE] = connection
        self._inner.connection_made(transport)
        self._table.add(connection)
        self._sweeper.start()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        assert self._connection is not None
        self._table.heard(self._connection)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        return cast("bool | None", self._inner.eof_received())

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        assert self._connection is not None
        self._table.remove(self._connection)
        # The protocol's state refers to the connection, which refers to the transport, which refers back here.
        self._state.clear()
        self._inner.connection_lost(exc)


class Sweeper:
    """Sweeps a table every second, while it has connections. One timer for all of them: requests set none."""

    def __init__(self, table: ConnectionTable) -> None:
        self._table = table
        self._timer: asyncio.TimerHandle | None = None
        self.clock = table.clock

    def start(self) -> None:
        """Sweeps from now on, if it does not already. Called on the event loop."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._table.sweep()
        if len(self._table):
            self.start()


def address_of(transport: asyncio.BaseTransport) -> str:
    """The owner of a connection, as far as it is known before any key.

    Of IPv6 it is the /64 network: one customer has all of its 2**64 addresses.
    """
    connected = transport.get_extra_info("socket")
    if connected is None:
        return ""
    if connected.family == socket.AF_UNIX:
        return _user_of(connected)
    try:
        host = str(connected.getpeername()[0])
        found = ipaddress.ip_address(host.partition("%")[0])
    # It has left already.
    except (OSError, ValueError):
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return host
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _user_of(connected: socket.socket) -> str:
    """The user at the other end of a Unix socket; all count as one if the system does not report it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return "unix"
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(found)
    return f"unix user {user}"
