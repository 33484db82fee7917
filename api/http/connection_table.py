"""The connections of a server, and which one is closed when there are too many.

    unknown ...... no request of it has been let in yet; at most `max_unknown_per_address` of one address
    known ........ its last caller is known; at most `max_connections_per_key` of one caller
    spare ........ beyond `max_connections` of the two above: only /livez is answered

A new connection is not refused while an older one has no request under way, or none that was let in: that one is
closed in its place. So a client that connects and sends nothing, or no key, delays no client that has one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from kvtrie.api.http.record_frames import Limits

LINGER_SECONDS = 5.0
"""Time for which a connection being closed may still send the rest of a reply to a slow reader."""
KEEP_ALIVE_SECONDS = 30
"""Idle connections are kept for longer than clients keep them, so that the client closes them."""


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, as the table sees it."""

    address: str
    """Its owner before any key is known: an IP address (of IPv6 its /64 network), or the user of a Unix socket."""
    abort: Callable[[], None]
    """Closes it at once."""
    is_closing: Callable[[], bool]
    """Whether it is being closed already."""
    quiet_since: float
    """When it was made, or its last request ended; by the table's clock."""
    heard_at: float | None = None
    """When the first byte arrived since then; None for none yet."""
    caller: str | None = None
    """Owner of its last request's key; None if unknown."""
    is_busy: bool = False
    """Whether a request is under way."""
    is_spare: bool = False
    closing_since: float | None = None
    """When the sweep first found it closing."""
    has_asked: bool = False
    """Whether a whole request head has ever arrived."""


class ConnectionTable:
    """All connections of one server. Called on the event loop only.

    Args:
        clock: seconds, never set back.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self.clock = clock
        self._served: set[Connection] = set()
        self._spare: set[Connection] = set()
        self.closed: Counter[str] = Counter()
        """Connections closed here, by reason."""

    def __len__(self) -> int:
        return len(self._served) + len(self._spare)

    def add(self, connection: Connection) -> None:
        """Takes a new connection in; may close another one, or make this one spare."""
        limits = self._limits
        unknown = [held for held in self._served if held.caller is None]
        alike = [held for held in unknown if held.address == connection.address]
        if len(alike) >= limits.max_unknown_per_address:
            connection.is_spare = not self._make_way(alike, "too many of one address")
        elif len(self._served) >= limits.max_connections:
            connection.is_spare = not self._make_way_among(unknown)
        if not connection.is_spare:
            self._served.add(connection)
            return
        if len(self._spare) >= limits.spare_connections and not self._make_way(self._spare, "too many"):
            self._close(connection, "too many")
            return
        self._spare.add(connection)

    def remove(self, connection: Connection) -> None:
        """Forgets a connection that is lost; one that was closed here is forgotten already."""
        self._served.discard(connection)
        self._spare.discard(connection)

    def heard(self, connection: Connection) -> None:
        """Notes that bytes have arrived on a connection."""
        if connection.heard_at is None and not connection.is_busy:
            connection.heard_at = self.clock()

    def began(self, connection: Connection) -> None:
        """Notes that a whole request head has arrived. A spare connection becomes a served one if there is room."""
        connection.is_busy = connection.has_asked = True
        connection.heard_at = None
        if connection.is_spare and len(self._served) < self._limits.max_connections:
            connection.is_spare = False
            self._spare.discard(connection)
            self._served.add(connection)

    def ended(self, connection: Connection) -> None:
        """Notes that a connection's request has ended."""
        connection.is_busy = False
        connection.quiet_since = self.clock()

    def identify(self, connection: Connection, caller: str) -> bool:
        """Notes whose key a request has; False if `caller` has too many connections, all of them busy."""
        if connection.caller == caller:
            return True
        others = [held for held in self._served if held.caller == caller]
        if len(others) >= self._limits.max_connections_per_key and not self._make_way(
            others, "too many of one key"
        ):
            return False
        connection.caller = caller
        return True

    def sweep(self) -> None:
        """Closes connections that took too long: to send a head, to be used again, to read their last reply."""
        now = self.clock()
        for held in [*self._served, *self._spare]:
            if held.is_closing():
                if held.closing_since is None:
                    held.closing_since = now
                if now - held.closing_since > LINGER_SECONDS:
                    self._close(held, "not read")
            elif held.is_busy:
                continue
            elif held.heard_at is not None or not held.has_asked:
                waited = now - (held.quiet_since if held.heard_at is None else held.heard_at)
                if waited > self._limits.header_seconds:
                    self._close(held, "no request")
            # The server closes idle ones itself; this is for those that it has lost sight of.
            elif now - held.quiet_since > KEEP_ALIVE_SECONDS + LINGER_SECONDS:
                self._close(held, "idle")

    def _make_way_among(self, unknown: Collection[Connection]) -> bool:
        """Closes an unknown connection, or else an idle one of the caller that has most, to make room."""
        if self._make_way(unknown, "too many"):
            return True
        callers = Counter(held.caller for held in self._served if not held.is_busy)
        if not callers:
            return False
        most = max(callers, key=lambda caller: callers[caller])
        return self._make_way([held for held in self._served if held.caller == most], "too many")

    def _make_way(self, among: Collection[Connection], reason: str) -> bool:
        """Closes the one that has been idle for longest; False where each serves a known caller right now."""
        closable = [held for held in among if not held.is_busy or held.caller is None]
        if not closable:
            return False
        self._close(min(closable, key=lambda held: (held.is_busy, held.quiet_since)), reason)
        return True

    def _close(self, connection: Connection, reason: str) -> None:
        # Its place is free at once; that it is lost is reported only later.
        self.remove(connection)
        self.closed[reason] += 1
        connection.abort()
