"""S3-FIFO: three queues, no recency."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank

_MOST_USES = 3
"""Two bits per leaf count uses."""


class S3Fifo:
    """S3-FIFO (Yang et al., FIFO Queues Are All You Need for Cache Eviction, SOSP 2023): new leaves pass a small
    FIFO; two uses or more on the way take them to the main one, otherwise only their key is remembered, and who
    returns while it is goes to the main FIFO at once. There, every use buys another round.

    A leaf's place in its FIFO is its `credit`. An inner node inherits that of its last child, so a chain that is
    not used any more goes from its end to its beginning, not once around the queue for every chunk.

    Args:
        ghosts: most keys that are remembered; the paper: as many as the main queue holds.
        small: fraction of queued leaves that the small FIFO may hold.

    Raises:
        InputError: `small` is no fraction, or `ghosts` below one.
    """

    def __init__(self, ghosts: int, small: float = 0.1) -> None:
        if not 0.0 <= small <= 1.0:
            raise InputError(f"small={small} is not a fraction; 0.1 is usual")
        if ghosts < 1:
            raise InputError(f"s3fifo needs to remember keys, got ghosts={ghosts}")
        self._most_small = small
        self._small = LeafQueue(_by_place)
        self._main = LeafQueue(_by_place)
        self._gone = Ghosts(ghosts)
        self._spent: dict[Residence, int] = {}
        """Uses of each leaf that have bought something already, the one that stored it included."""
        self._in_main: set[Residence] = set()
        """Those that have passed the small FIFO, also while they are held or have children."""
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
        """See `EvictionPolicy.used`: uses are counted by the tree."""

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
                # On entering the main FIFO uses are forgotten; there, a round costs one.
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
