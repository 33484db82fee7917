"""Least recently used: the default."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from kvtrie.prefix_tree.node import Residence


class LeastRecentlyUsed:
    """LRU over leaves. Use is settled lazily: a queued residence keeps the place of its old last use
    and is re-sorted only when it reaches the front, so each use costs at most one re-sort later on.

    At most one leaf has a given tick as its last use: all residences of a tier with that tick are on one path, and
    only the end of a path is a leaf. So ticks are queued, not leaves. Most are added in order, to a deque; the
    others are added to a heap: re-sorted leaves, and inner nodes whose last child was evicted.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, Residence] = {}
        """Queued residences by the tick they are queued under."""
        self._line: deque[int] = deque()
        """Ticks that were added in order; some are of residences discarded since."""
        self._late: list[int] = []
        """A heap of the ticks that were not added in order."""

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence.queued_at < 0:
            residence.queued_at = tick = residence.last_use
            self._leaves[tick] = residence
            if not self._line or tick >= self._line[-1]:
                self._line.append(tick)
            else:
                heappush(self._late, tick)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        if residence.queued_at >= 0:
            del self._leaves[residence.queued_at]
            residence.queued_at = -1
            if len(self._line) + len(self._late) > 2 * len(self._leaves) + 64:
                self._line, self._late = deque(sorted(self._leaves)), []

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: `last_use` is all it needs."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        line, late, leaves = self._line, self._late, self._leaves
        while line or late:
            tick = heappop(late) if late and not (line and line[0] < late[0]) else line.popleft()
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
        return self._leaves.get(residence.queued_at) is residence

    def __len__(self) -> int:
        return len(self._leaves)
