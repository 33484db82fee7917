"""2Q: new leaves enter a FIFO queue; a leaf stored again after leaving it enters an LRU queue."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank, by_last_use


class TwoQueue:
    """2Q, full version (Johnson and Shasha, VLDB 1994): new leaves enter a FIFO, and are evicted at its end
    however often they were used meanwhile; their keys are remembered. A leaf that is stored again while its key is
    remembered enters the main queue, an LRU.

    Args:
        ghosts: most keys of evicted leaves to remember; in the paper, half as many as the cache holds chunks.
        waiting: largest size of the FIFO, as a fraction of queued leaves.

    Raises:
        InputError: `waiting` is not a fraction, or `ghosts` below one.
    """

    def __init__(self, ghosts: int, waiting: float = 0.25) -> None:
        if not 0.0 <= waiting <= 1.0:
            raise InputError(f"waiting={waiting} is not a fraction; 0.25 is usual")
        if ghosts < 1:
            raise InputError(f"2q must remember at least one evicted key, got ghosts={ghosts}")
        self._most_waiting = waiting
        self._waiting = LeafQueue(_by_arrival)
        self._main = LeafQueue(by_last_use)
        self._gone = Ghosts(ghosts)

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence in self:
            return
        if self._gone.take(residence.node.key):
            residence.credit = _RETURNED
        (self._main if residence.credit == _RETURNED else self._waiting).push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._waiting.discard(residence)
        self._main.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: only being stored again after an eviction counts."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        residence = None
        if len(self._waiting) <= self._most_waiting * len(self):
            residence = self._main.pop()
        if residence is None:
            residence = self._waiting.pop()
            if residence is None:
                return self._main.pop()
            self._gone.add(residence.node.key)
        return residence

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._waiting or residence in self._main

    def __len__(self) -> int:
        return len(self._waiting) + len(self._main)


_RETURNED = 1.0
"""`credit` of a leaf that was stored again while its key was remembered; its ancestors inherit it."""


def _by_arrival(residence: Residence) -> Rank:
    return residence.stored_at, 0
