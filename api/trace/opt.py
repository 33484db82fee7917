"""OPT: an upper bound for all policies, because it knows the future.

Belady's MIN (IBM Systems Journal 1966) on leaves: the leaf whose next use is farthest away is evicted first, of
several the deepest. A chunk that a request has just stored may be evicted at once (bypass). A parent's
next use is never later than its child's, so the best leaf to evict is the best block to evict.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from kvtrie.api.trace.trace import Trace
from kvtrie.prefix_tree import Residence


class FarthestNextUse:
    """An `EvictionPolicy` for the replay of one trace; call `before_request` before each request.

    Residences must have their block's number as their handle.
    """

    def __init__(self, trace: Trace) -> None:
        self._starts = trace.starts.tolist()
        self._blocks = trace.blocks
        self._after = next_uses(trace)
        self._next = np.zeros(trace.unique_blocks, np.int64)
        self._next_of = self._next.data
        self._heap: list[tuple[int, int, int, Residence]] = []
        """(-next use, -depth, block, residence). A use makes a leaf's next use later: it is queued again, and
        the older entry, which is no longer the one in `_queued`, is dropped when it comes up."""
        self._queued: dict[int, int] = {}

    def before_request(self, index: int) -> None:
        """Moves on to request `index`: its blocks' next uses are those after it."""
        start, end = self._starts[index], self._starts[index + 1]
        self._next[self._blocks[start:end]] = self._after[start:end]

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        block = residence.handle
        assert isinstance(block, int)
        next_use = self._next_of[block]
        if self._queued.get(block) != next_use:
            self._queued[block] = next_use
            heappush(self._heap, (-next_use, -residence.node.depth, block, residence))

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        assert isinstance(residence.handle, int)
        self._queued.pop(residence.handle, None)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: `before_request` has noted the use."""

    def __contains__(self, residence: Residence) -> bool:
        return residence.handle in self._queued

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while self._heap:
            next_use, _, block, residence = heappop(self._heap)
            if self._queued.get(block) != -next_use:
                continue
            del self._queued[block]
            if residence.evictable:
                return residence
        return None


def next_uses(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each block use, the request that uses the block next; the number of requests for never."""
    order = np.argsort(trace.blocks, kind="stable")
    request = np.repeat(np.arange(len(trace)), np.diff(trace.starts))
    block, at = trace.blocks[order], request[order]
    after = np.full(len(order), len(trace), np.int64)
    again = block[1:] == block[:-1]
    after[order[:-1][again]] = at[1:][again]
    return after
