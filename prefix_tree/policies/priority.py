"""Leaves evicted by the priority of their scope, which expires after a time without use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank


class PriorityWithExpiry:
    """Evicts leaves that were not used for `ttl_seconds` first, the longest unused first of all; then the leaf of
    lowest priority; among equals, LRU. (Retention priority with a duration, as in TensorRT-LLM's
    `KvCacheRetentionConfig`.)

    Args:
        priorities: of each scope; scopes of higher priority are kept longer. 0 for a scope that is not named.
        ttl_seconds: how long a priority lasts after a use; None for no end.
        steady: seconds of a clock that is never set; must be the clock that the tree uses.

    Raises:
        InputError: `ttl_seconds` is not positive.
    """

    def __init__(
        self,
        priorities: Mapping[str, float] | None = None,
        ttl_seconds: float | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        if ttl_seconds is not None and ttl_seconds <= 0:
            raise InputError(f"ttl_seconds={ttl_seconds} is not positive; leave it out for no expiry")
        self._priorities = dict(priorities or {})
        self._ttl_seconds = ttl_seconds
        self._steady = steady
        self._by_priority = LeafQueue(self._priority)
        self._by_age = LeafQueue(_by_age)

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence not in self._by_priority:
            self._by_priority.push(residence)
        if self._ttl_seconds is not None and residence not in self._by_age:
            self._by_age.push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._by_priority.discard(residence)
        self._by_age.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        residence = self._expired()
        if residence is None:
            residence = self._by_priority.pop()
        if residence is not None:
            self.discard(residence)
        return residence

    def _expired(self) -> Residence | None:
        if self._ttl_seconds is None:
            return None
        oldest = self._by_age.pop()
        if oldest is None or oldest.node.used_seconds + self._ttl_seconds <= self._steady():
            return oldest
        self._by_age.push(oldest)
        return None

    def _priority(self, residence: Residence) -> Rank:
        return self._priorities.get(residence.node.root.scope, 0.0), residence.last_use

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._by_priority

    def __len__(self) -> int:
        return len(self._by_priority)


def _by_age(residence: Residence) -> Rank:
    return residence.node.used_seconds, residence.last_use
