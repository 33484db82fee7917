"""Minimum shares and quotas of scopes, on top of any policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, by_last_use
from kvtrie.prefix_tree.policy import EvictionPolicy


class ScopeLimits:
    """Evicts in the order of another policy, but

    * first from scopes above their quota, least recently used leaves first;
    * never so that a scope falls below its minimum share, while another scope has an evictable leaf and is above
      its own share by at least the size of the largest chunk.

    A victim of the other policy that its scope needs for its share is set aside, in a queue of its scope. When the
    scope has grown, leaves of as many bytes return from there to the policy, the least recently used first. So each
    leaf set aside is paid for by stored bytes or by a victim, and an eviction stays O(log leaves), amortised.

    Args:
        policy: the order of eviction where no limit applies.
        shares: bytes that each named scope keeps, as long as other scopes have leaves to evict.
        quotas: bytes that each named scope may occupy.
        occupied_bytes: bytes that a scope occupies in this tier now.
    """

    def __init__(
        self,
        policy: EvictionPolicy,
        shares: Mapping[str, int],
        quotas: Mapping[str, int],
        occupied_bytes: Callable[[str], int],
    ) -> None:
        self._policy = policy
        self._shares = dict(shares)
        self._quotas = dict(quotas)
        self._occupied_bytes = occupied_bytes
        self._aside = {scope: LeafQueue(by_last_use) for scope in shares}
        """Leaves set aside: kept from the policy, because their scope needs them for its share."""
        self._grown_bytes: defaultdict[str, int] = defaultdict(int)
        """Bytes stored by each scope with leaves set aside, since leaves last returned from there."""
        self._own = {scope: LeafQueue(by_last_use) for scope in quotas}
        """Every leaf of each scope with a quota. The same leaves are also queued in the policy, or set aside."""
        self._over: set[str] = set()
        """Scopes that may be above their quota."""

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        scope = residence.node.root.scope
        own, aside = self._own.get(scope), self._aside.get(scope)
        if own is not None and residence not in own:
            own.push(residence)
        if aside is None or residence not in aside:
            self._policy.add(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        scope = residence.node.root.scope
        for queue in (self._own.get(scope), self._aside.get(scope)):
            if queue is not None:
                queue.discard(residence)
        self._policy.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""
        self._policy.finished(residence, matched_chunks)

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`."""
        self._policy.used(residence, tick)

    def grew(self, scope: str, size_bytes: int) -> None:
        """Notes that a scope occupies `size_bytes` more."""
        if self._aside.get(scope):
            self._grown_bytes[scope] += size_bytes
        if scope in self._quotas:
            self._over.add(scope)

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        for scope in list(self._over):
            if self._occupied_bytes(scope) <= self._quotas[scope]:
                self._over.discard(scope)
            elif (residence := self.victim_of(scope)) is not None:
                return residence
        if self._grown_bytes:
            self._bring_back()
        while (residence := self._policy.victim()) is not None:
            scope = residence.node.root.scope
            if self._excess_bytes(scope) >= residence.size_bytes:
                return self._taken(residence)
            self._aside[scope].push(residence)
        # Every evictable leaf is set aside now: evict from the scope that is furthest above its share.
        for scope in sorted(self._aside, key=self._excess_bytes, reverse=True):
            if (aside := self._aside[scope].pop()) is not None:
                return self._taken(aside)
        return None

    def victim_of(self, scope: str) -> Residence | None:
        """Takes out the least recently used leaf of a scope that has a quota."""
        residence = self._own[scope].pop()
        if residence is not None:
            self.discard(residence)
        return residence

    def _taken(self, residence: Residence) -> Residence:
        own = self._own.get(residence.node.root.scope)
        if own is not None:
            own.discard(residence)
        return residence

    def _bring_back(self) -> None:
        for scope, grown in self._grown_bytes.items():
            owed = min(grown, self._excess_bytes(scope))
            aside = self._aside[scope]
            while owed > 0 and (residence := aside.pop()) is not None:
                self._policy.add(residence)
                owed -= residence.size_bytes
        self._grown_bytes.clear()

    def _excess_bytes(self, scope: str) -> int:
        """Bytes that a scope occupies above its minimum share; negative where it is below."""
        return self._occupied_bytes(scope) - self._shares.get(scope, 0)

    def __contains__(self, residence: Residence) -> bool:
        aside = self._aside.get(residence.node.root.scope)
        return residence in self._policy or (aside is not None and residence in aside)
