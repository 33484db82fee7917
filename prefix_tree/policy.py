"""The order in which a tier gives up its leaves: the protocol, and LRU."""

from __future__ import annotations

from typing import Protocol

from sortedcontainers import SortedList

from kvtrie.prefix_tree.node import Residence


class EvictionPolicy(Protocol):
    """Orders one tier's evictable residences. A residence that stops being evictable may stay queued
    until it comes up: that is what keeps leases and touches O(1)."""

    def add(self, residence: Residence) -> None:
        """Queues a residence that has just become evictable; queueing it twice changes nothing."""

    def discard(self, residence: Residence) -> None:
        """Forgets a residence that leaves the tier by another way than `victim`."""

    def victim(self) -> Residence | None:
        """Takes out the residence to evict next, or returns None when there is none."""


class LeastRecentlyUsed:
    """LRU over leaves. Use is settled lazily: a queued residence keeps the place of its old last use
    and is re-sorted only when it reaches the front, so each use costs at most one re-sort later on.
    """

    def __init__(self) -> None:
        self._queue: SortedList[tuple[int, int, Residence]] = SortedList()

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence.queued_at < 0:
            residence.queued_at = residence.last_use
            self._queue.add((residence.queued_at, id(residence), residence))

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        if residence.queued_at >= 0:
            self._queue.remove((residence.queued_at, id(residence), residence))
            residence.queued_at = -1

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while self._queue:
            queued_at, _, residence = self._queue.pop(0)
            residence.queued_at = -1
            if not residence.evictable:
                continue
            if residence.last_use > queued_at:
                self.add(residence)
                continue
            return residence  # type: ignore[no-any-return]
        return None

    def __len__(self) -> int:
        return len(self._queue)
