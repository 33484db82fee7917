"""One tier's book-keeping: capacity, bytes used and reserved per scope, and which leaf is evicted next.

    free ──reserve──> pending ──store──> used ──evict──> free
                         └───unreserve──> free

`free + pending + used = capacity` at every step, in total and, for the last two, per scope.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.lru import LeastRecentlyUsed
from kvtrie.prefix_tree.policies.scope_limits import ScopeLimits
from kvtrie.prefix_tree.policy import EvictionPolicy

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class ScopeBytes:
    """Bytes that one scope occupies in one tier."""

    used_bytes: int = 0
    """Bytes of chunks in the tree."""
    pending_bytes: int = 0
    """Bytes reserved by requests in flight: private chunks and chunks being computed."""


class Tier:
    """Book-keeping of one tier; the bytes themselves belong to the pool or store behind it.

    A policy that raises is given up: the error is logged and kept in `policy_error`, and from then on leaves are
    evicted by LRU. An eviction in progress continues, and no request fails for it.

    Args:
        name: shown in dumps and figures.
        capacity_bytes: size of the tier.
        policy: which leaf is evicted next; LRU when left out.
        shares: bytes that each named scope keeps, while other scopes above their share have leaves to evict.
        quotas: bytes that each named scope may occupy: chunks above a scope's quota are evicted first. The tree
            stores them all the same; ask `over_quota_bytes` before, or evict after.

    Raises:
        InputError: shares below zero or above the capacity together, or a quota below its scope's share.
    """

    def __init__(
        self,
        name: str,
        capacity_bytes: int,
        policy: EvictionPolicy | None = None,
        *,
        shares: Mapping[str, int] | None = None,
        quotas: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.capacity_bytes = capacity_bytes
        self._shares = dict(shares or {})
        self._quotas = dict(quotas or {})
        _check_limits(name, capacity_bytes, self._shares, self._quotas)
        self._limits: ScopeLimits | None = None
        self.policy: EvictionPolicy
        """The order in which leaves are evicted, shares and quotas included."""
        self._follow(policy if policy is not None else LeastRecentlyUsed())
        self.policy_error: Exception | None = None
        """The error for which the policy was given up; None if it was not."""
        self._residences: Callable[[], Iterable[Residence]] = tuple
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
        if self._limits is not None:
            self._limits.grew(scope, size_bytes)

    def unreserve(self, scope: str, size_bytes: int) -> None:
        """Undoes a `reserve`."""
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
        if self._limits is not None:
            self._limits.grew(scope, size_bytes)

    def left(self, scope: str, size_bytes: int) -> None:
        """Books that a node of `scope` is not resident any more."""
        self.used_bytes -= size_bytes
        self.chunks -= 1
        self.scopes[scope].used_bytes -= size_bytes
        self._forget_if_empty(scope)

    def occupied_bytes(self, scope: str) -> int:
        """Bytes that a scope occupies here: its chunks in the tree, and what its requests have reserved."""
        booked = self.scopes.get(scope)
        return 0 if booked is None else booked.used_bytes + booked.pending_bytes

    def over_quota_bytes(self, scope: str, more_bytes: int = 0) -> int:
        """Bytes that must be evicted from a scope before it may occupy `more_bytes` more; 0 if it has no quota."""
        if scope not in self._quotas:
            return 0
        return max(0, self.occupied_bytes(scope) + more_bytes - self._quotas[scope])

    def victim(self, scope: str | None = None) -> Residence | None:
        """Takes out the leaf to evict next, of all scopes or of one that has a quota; None when there is none.

        Raises:
            InputError: the scope has no quota here, so its leaves are not queued apart.
        """
        if scope is not None and scope not in self._quotas:
            raise InputError(f"scope {scope} has no quota in tier {self.name}; evict without naming a scope")
        try:
            return self._victim(scope)
        except Exception as error:
            self.give_up_policy(error)
            return self._victim(scope)

    def _victim(self, scope: str | None) -> Residence | None:
        if scope is None:
            return self.policy.victim()
        assert self._limits is not None
        return self._limits.victim_of(scope)

    def settle(self, residence: Residence) -> None:
        """Queues the residence for eviction if it has no resident child and no hold."""
        if residence.children == 0 and residence.holds == 0:
            try:
                self.policy.add(residence)
            except Exception as error:
                self.give_up_policy(error)

    def settle_all(self) -> None:
        """Queues every evictable residence, since an interrupted policy may have lost some. O(nodes)."""
        for residence in self._residences():
            self.settle(residence)

    def serve(self, residences: Callable[[], Iterable[Residence]]) -> None:
        """Attaches the tier to a tree; `residences` lists what the tree has in this tier."""
        self._residences = residences

    def _follow(self, policy: EvictionPolicy) -> None:
        if not self._shares and not self._quotas:
            self.policy = policy
            return
        self.policy = self._limits = ScopeLimits(policy, self._shares, self._quotas, self.occupied_bytes)
        for scope in self._quotas:
            # Growth by 0 bytes: it makes the limits look whether the scope is above its quota.
            self._limits.grew(scope, 0)

    def give_up_policy(self, error: Exception) -> None:
        """Evicts by LRU from now on, because the policy raised `error`. The tree must be whole. O(nodes)."""
        _LOG.error(
            "tier %s: its eviction policy failed; least recently used from here on", self.name, exc_info=error
        )
        self.policy_error = error
        self._follow(LeastRecentlyUsed())
        for residence in self._residences():
            residence.queued_at = -1
        self.settle_all()

    def _scope(self, scope: str) -> ScopeBytes:
        booked = self.scopes.get(scope)
        if booked is None:
            booked = self.scopes[scope] = ScopeBytes()
        return booked

    def _forget_if_empty(self, scope: str) -> None:
        booked = self.scopes[scope]
        if booked.used_bytes == 0 and booked.pending_bytes == 0:
            del self.scopes[scope]


def _check_limits(
    name: str, capacity_bytes: int, shares: Mapping[str, int], quotas: Mapping[str, int]
) -> None:
    for scope, share in shares.items():
        if share < 0:
            raise InputError(
                f"minimum share of scope {scope} in tier {name} is {share} bytes; give 0 or more"
            )
        if share > quotas.get(scope, share):
            raise InputError(
                f"scope {scope} may occupy {quotas[scope]} bytes of tier {name}, and keep {share}"
            )
    if sum(shares.values()) > capacity_bytes:
        raise InputError(
            f"minimum shares in tier {name} are {sum(shares.values())} bytes together, of {capacity_bytes}"
        )
    for scope, quota in quotas.items():
        if quota < 1:
            raise InputError(f"quota of scope {scope} in tier {name} is {quota} bytes; give at least 1")
