"""One tier's book-keeping: capacity, what is used and reserved per scope, and who goes next.

    free ──reserve──> pending ──store──> used ──evict──> free
                         └───unreserve──> free

`free + pending + used = capacity` at every step, in total and, for the last two, per scope.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policy import EvictionPolicy, LeastRecentlyUsed


@dataclass(slots=True)
class ScopeBytes:
    """What one scope occupies in one tier."""

    used_bytes: int = 0
    """Bytes of chunks in the tree."""
    pending_bytes: int = 0
    """Bytes reserved by requests in flight: private chunks and chunks being computed."""


class Tier:
    """Book-keeping of one tier; the bytes themselves belong to the pool or store behind it."""

    def __init__(self, name: str, capacity_bytes: int, policy: EvictionPolicy | None = None) -> None:
        self.name = name
        self.capacity_bytes = capacity_bytes
        self.policy: EvictionPolicy = policy if policy is not None else LeastRecentlyUsed()
        self.used_bytes = 0
        self.pending_bytes = 0
        self.chunks = 0
        """Nodes resident here."""
        self.scopes: dict[str, ScopeBytes] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes neither used by the tree nor reserved by a request."""
        return self.capacity_bytes - self.used_bytes - self.pending_bytes

    def reserve(self, scope: str, size_bytes: int) -> None:
        """Books bytes that a request of `scope` has taken but not yet stored."""
        assert size_bytes <= self.free_bytes, (size_bytes, self.free_bytes)
        self.pending_bytes += size_bytes
        self._scope(scope).pending_bytes += size_bytes

    def unreserve(self, scope: str, size_bytes: int) -> None:
        """Gives back what `reserve` booked."""
        self.pending_bytes -= size_bytes
        self._scope(scope).pending_bytes -= size_bytes
        assert self.scopes[scope].pending_bytes >= 0
        self._forget_if_empty(scope)

    def entered(self, scope: str, chunks: int, size_bytes: int) -> None:
        """Books nodes of `scope` that have just become resident, `size_bytes` together."""
        self.used_bytes += size_bytes
        assert self.used_bytes + self.pending_bytes <= self.capacity_bytes, self.name
        self.chunks += chunks
        self._scope(scope).used_bytes += size_bytes

    def left(self, residence: Residence) -> None:
        """Books a node that is resident no longer."""
        scope = residence.node.root.scope
        self.used_bytes -= residence.size_bytes
        self.chunks -= 1
        self._scope(scope).used_bytes -= residence.size_bytes
        self._forget_if_empty(scope)

    def settle(self, residence: Residence) -> None:
        """Queues the residence for eviction if nothing keeps it."""
        if residence.children == 0 and residence.holds == 0:
            self.policy.add(residence)

    def _scope(self, scope: str) -> ScopeBytes:
        booked = self.scopes.get(scope)
        if booked is None:
            booked = self.scopes[scope] = ScopeBytes()
        return booked

    def _forget_if_empty(self, scope: str) -> None:
        booked = self.scopes[scope]
        if booked.used_bytes == 0 and booked.pending_bytes == 0:
            del self.scopes[scope]
