"""Leaves in the order of a rank that use may raise: what most policies are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from kvtrie.prefix_tree.node import Residence

Rank = tuple[float, int]
"""The smaller goes first: what the policy thinks of a leaf, and what decides between equals."""


def by_last_use(residence: Residence) -> Rank:
    """Least recently used first."""
    return residence.last_use, 0


class LeafQueue:
    """A heap, lazily re-sorted: a leaf keeps its place while its rank rises, and is ranked anew when it comes
    to the front. A rank must not fall while a leaf is queued. Equals leave in the order they came."""

    def __init__(self, rank: Callable[[Residence], Rank]) -> None:
        self._rank = rank
        self._entry_of: dict[Residence, int] = {}
        """Number of each queued leaf's entry in the heap."""
        self._leaf_of: dict[int, Residence] = {}
        """The other way round."""
        self._heap: list[tuple[Rank, int]] = []
        """Ranks and numbers of entries, and some that no longer count. These name no leaf, so that nothing evicted
        is kept for them."""
        self._entries = 0

    def push(self, residence: Residence) -> None:
        """Queues a leaf that is in no queue."""
        self._entries += 1
        self._entry_of[residence] = self._entries
        self._leaf_of[self._entries] = residence
        heappush(self._heap, (self._rank(residence), self._entries))

    def pop(self) -> Residence | None:
        """Takes out the leaf that ranks lowest; forgets those on the way that have children or are held."""
        heap, leaf_of = self._heap, self._leaf_of
        while heap:
            rank, entry = heappop(heap)
            residence = leaf_of.get(entry)
            if residence is None:
                continue
            if residence.children == 0 and residence.holds == 0 and (now := self._rank(residence)) > rank:
                heappush(heap, (now, entry))
                continue
            del leaf_of[entry], self._entry_of[residence]
            if residence.children == 0 and residence.holds == 0:
                return residence
        return None

    def discard(self, residence: Residence) -> None:
        """Forgets a leaf, if it is queued here."""
        entry = self._entry_of.pop(residence, None)
        if entry is None:
            return
        del self._leaf_of[entry]
        if len(self._heap) > 2 * len(self._leaf_of) + 64:
            self._heap = [e for e in self._heap if e[1] in self._leaf_of]
            heapify(self._heap)

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._entry_of

    def __iter__(self) -> Iterator[Residence]:
        return iter(self._entry_of)

    def __len__(self) -> int:
        return len(self._entry_of)


class RankedLeaves:
    """An eviction policy that is one rank over all leaves."""

    def __init__(self) -> None:
        self._queue = LeafQueue(self.rank)

    def rank(self, residence: Residence) -> Rank:
        """Who goes first: see `Rank`."""
        raise NotImplementedError(f"{type(self).__name__} has no rank")

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence not in self._queue:
            self._queue.push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._queue.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        return self._queue.pop()

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._queue

    def __len__(self) -> int:
        return len(self._queue)
