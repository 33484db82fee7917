"""A priority queue of leaves whose rank can only rise while they are queued. Most policies are built on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from kvtrie.prefix_tree.node import Residence

Rank = tuple[float, int]
"""The leaf with the smallest is evicted first: the policy's figure, then a figure that decides between equals."""


def by_last_use(residence: Residence) -> Rank:
    """Least recently used first."""
    return residence.last_use, 0


class LeafQueue:
    """A heap that is re-sorted lazily: a leaf keeps its place while its rank rises, and is ranked anew when it
    reaches the front. A rank must not fall while a leaf is queued. Leaves of equal rank are popped in the order
    they were pushed."""

    def __init__(self, rank: Callable[[Residence], Rank]) -> None:
        self._rank = rank
        self._entry_of: dict[Residence, int] = {}
        """Number of each queued leaf's entry in the heap."""
        self._leaf_of: dict[int, Residence] = {}
        """Leaf of each entry number: the inverse of `_entry_of`."""
        self._heap: list[tuple[Rank, int]] = []
        """Rank and number of each entry. Entries of discarded leaves stay until they reach the front; they are
        numbers only, so they keep no evicted leaf alive."""
        self._entries = 0

    def push(self, residence: Residence) -> None:
        """Queues a leaf that is in no queue."""
        self._entries += 1
        self._entry_of[residence] = self._entries
        self._leaf_of[self._entries] = residence
        heappush(self._heap, (self._rank(residence), self._entries))

    def pop(self) -> Residence | None:
        """Takes out the leaf with the lowest rank; forgets residences before it that have children or are held."""
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
    """An eviction policy that evicts the leaf of lowest `rank`."""

    def __init__(self) -> None:
        self._queue = LeafQueue(self.rank)

    def rank(self, residence: Residence) -> Rank:
        """Rank of a leaf: the lowest is evicted first."""
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
