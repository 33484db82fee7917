"""S3-FIFO: a small and a main first-in-first-out queue, and the keys of leaves evicted from the small one."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank

_MOST_USES = 3
"""Uses beyond this many do not count: the paper keeps two bits per leaf."""


class S3Fifo:
    """S3-FIFO (Yang et al., FIFO Queues Are All You Need for Cache Eviction, SOSP 2023): new leaves enter a
    small FIFO. At its end a leaf with two uses or more moves to the main FIFO; any other is evicted and its key
    remembered, and if it is stored again while the key is remembered, it enters the main FIFO at once. At the end
    of the main FIFO a leaf with a use left re-enters it, which costs one use; any other is evicted.

    A leaf's place in its FIFO is its `credit`. An inner node inherits the place of its last child, so a path that
    is not used any more is evicted from its end to its beginning without queueing once more for every chunk.

    Args:
        ghosts: most keys of evicted leaves to remember; in the paper, as many as the main queue holds.
        small: fraction of queued leaves that the small FIFO may hold.

    Raises:
        InputError: `small` is not a fraction, or `ghosts` below one.
    """

    def __init__(self, ghosts: int, small: float = 0.1) -> None:
        if not 0.0 <= small <= 1.0:
            raise InputError(f"small={small} is not a fraction; 0.1 is usual")
        if ghosts < 1:
            raise InputError(f"s3fifo must remember at least one evicted key, got ghosts={ghosts}")
        self._most_small = small
        self._small = LeafQueue(_by_place)
        self._main = LeafQueue(_by_place)
        self._gone = Ghosts(ghosts)
        self._spent: dict[Residence, int] = {}
        """Uses of each leaf that were spent on a move already; the request that stored it counts as spent."""
        self._in_main: set[Residence] = set()
        """Residences that are past the small FIFO, also while they are held or have children."""
        self._latest_tick = 0

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        self._latest_tick = max(self._latest_tick, residence.last_use)
        if residence in self:
            return
        if residence not in self._spent:
            self._spent[residence] = 1
            residence.credit = max(residence.credit, residence.stored_at)
            if self._gone.take(residence.node.key):
                self._in_main.add(residence)
        (self._main if residence in self._in_main else self._small).push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._small.discard(residence)
        self._main.discard(residence)
        self._forget(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: the tree counts uses."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while True:
            from_small = len(self._small) > self._most_small * len(self) or not self._main
            residence = (self._small if from_small else self._main).pop()
            if residence is None:
                if not len(self):
                    return None
                continue
            uses = min(_MOST_USES, residence.uses - self._spent[residence])
            if uses > (1 if from_small else 0):
                # Entering the main FIFO spends all uses; re-entering it spends one.
                self._spent[residence] = residence.uses - (0 if from_small else uses - 1)
                self._in_main.add(residence)
                residence.credit = self._latest_tick
                self._main.push(residence)
                continue
            if from_small:
                self._gone.add(residence.node.key)
            self._forget(residence)
            return residence

    def _forget(self, residence: Residence) -> None:
        self._spent.pop(residence, None)
        self._in_main.discard(residence)

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._small or residence in self._main

    def __len__(self) -> int:
        return len(self._small) + len(self._main)


def _by_place(residence: Residence) -> Rank:
    return residence.credit, 0
