"""Admission of requests to a server: the caller of each, and the memory that its body may take."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException

from kvtrie.api.http.byte_budget import ByteBudget
from kvtrie.api.http.connection_table import Connection, ConnectionTable
from kvtrie.api.http.metrics_page import Page
from kvtrie.api.http.tenants import Caller, Tenants
from kvtrie.api.http.watched_protocol import STATE
from kvtrie.api.http.wrong_keys import WrongKeys


class Door:
    """Admits requests by their keys. Called on the event loop only.

    Args:
        tenants: callers by key.
        connections: connections of this server.
        receive_bytes: most bytes of unfinished bodies, over all requests.
        metrics_prefix: beginning of the names of its metrics.
    """

    def __init__(
        self, tenants: Tenants, connections: ConnectionTable, receive_bytes: int, metrics_prefix: str
    ) -> None:
        self.tenants = tenants
        self.connections = connections
        self.receiving = ByteBudget(receive_bytes)
        self._wrong_keys = WrongKeys()
        self._prefix = metrics_prefix

    def caller(self, request: Request) -> Caller:
        """The tenant or admin who sent a request.

        Raises:
            HTTPException: 401 for an unknown key, 429 for one of too many wrong keys, or for one connection too
                many of a right one.
        """
        connection: Connection | None = request.scope.get("state", {}).get(STATE)
        address = "" if connection is None else connection.address
        authorization = request.headers.get("authorization")
        if authorization is not None and not self._wrong_keys.may_try(address, authorization):
            raise HTTPException(
                429,
                "too many wrong API keys from this address: wait a second, then send a right one",
                {"Retry-After": "1"},
            )
        found = self.tenants.authenticate(authorization)
        if found is None:
            if authorization is not None:
                self._wrong_keys.wrong(address)
            raise HTTPException(
                401,
                "unknown API key: send the header `Authorization: Bearer KEY`",
                {"WWW-Authenticate": "Bearer"},
            )
        if connection is not None and connection.caller != found.name:
            if not self.connections.identify(connection, found.name):
                raise HTTPException(
                    429,
                    f"{found.name} has too many connections with a request under way: use fewer, or try again",
                    {"Retry-After": "1", "Connection": "close"},
                )
            if authorization is not None:
                self._wrong_keys.right(address, authorization)
        return found

    def metrics(self) -> str:
        """Figures of connections, keys and bodies, for Prometheus."""
        page, prefix = Page(), self._prefix
        page.family(f"{prefix}_connections", "gauge", "Open connections.", [({}, len(self.connections))])
        page.family(
            f"{prefix}_connections_closed_total",
            "counter",
            "Connections closed for others or for taking too long, by reason.",
            [({"reason": reason}, count) for reason, count in sorted(self.connections.closed.items())],
        )
        page.family(
            f"{prefix}_wrong_keys_total", "counter", "Wrong API keys.", [({}, self._wrong_keys.total)]
        )
        for name, help_text, figure in (
            ("capacity", "Most bytes of unfinished bodies.", self.receiving.capacity_bytes),
            ("used", "Bytes of unfinished bodies.", self.receiving.used_bytes),
        ):
            page.family(f"{prefix}_receive_{name}_bytes", "gauge", help_text, [({}, figure)])
        return page.text()
