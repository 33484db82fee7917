"""Least recently used: the default."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from kvtrie.prefix_tree.node import Residence


class LeastRecentlyUsed:
    """LRU over leaves. Use is settled lazily: a queued residence keeps the place of its old last use
    and is re-sorted only when it reaches the front, so each use costs at most one re-sort later on.

    A tick names one leaf at most: all that one tick touched in a tier lies on one path, and of a path only the
    end is a leaf. So the heap holds bare ticks, which is half the memory and time of one of tuples.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, Residence] = {}
        """Queued residences by the tick they are queued under."""
        self._ticks: list[int] = []
        """A heap of the ticks in `_leaves`, and of some whose residence was discarded."""

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence.queued_at < 0:
            residence.queued_at = tick = residence.last_use
            self._leaves[tick] = residence
            heappush(self._ticks, tick)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        if residence.queued_at >= 0:
            del self._leaves[residence.queued_at]
            residence.queued_at = -1
            if len(self._ticks) > 2 * len(self._leaves) + 64:
                self._ticks = list(self._leaves)
                heapify(self._ticks)

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`: `last_use` says all."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        ticks, leaves = self._ticks, self._leaves
        while ticks:
            tick = heappop(ticks)
            residence = leaves.pop(tick, None)
            if residence is None:
                continue
            residence.queued_at = -1
            if residence.children or residence.holds:
                continue
            if residence.last_use > tick:
                self.add(residence)
                continue
            return residence
        return None

    def __contains__(self, residence: Residence) -> bool:
        return residence.queued_at >= 0

    def __len__(self) -> int:
        return len(self._leaves)
