"""2Q: a first-in-first-out antechamber, and a room for what came back."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank, by_last_use


class TwoQueue:
    """2Q, full version (Johnson and Shasha, VLDB 1994): new leaves wait in a FIFO and leave it however often
    they were used meanwhile; only their keys are kept. Who is stored again while its key is remembered goes to
    the main queue, an LRU.

    Args:
        ghosts: most keys that are remembered; the paper: half as many as the cache holds.
        waiting: fraction of queued leaves that may wait in the FIFO.

    Raises:
        InputError: `waiting` is no fraction, or `ghosts` below one.
    """

    def __init__(self, ghosts: int, waiting: float = 0.25) -> None:
        if not 0.0 <= waiting <= 1.0:
            raise InputError(f"waiting={waiting} is not a fraction; 0.25 is usual")
        if ghosts < 1:
            raise InputError(f"2q needs to remember keys, got ghosts={ghosts}")
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
        """See `EvictionPolicy.used`: what counts is coming back after having gone."""

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
"""`credit` of what has come back; what stands above it has too, and inherits it."""


def _by_arrival(residence: Residence) -> Rank:
    return residence.stored_at, 0
