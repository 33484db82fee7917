"""ARC: the balance between recency and frequency, found while serving."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, by_last_use


class AdaptiveReplacement:
    """ARC (Megiddo and Modha, FAST 2003): leaves used once and leaves used again are two LRU queues. Each
    remembers the keys it gave up lately; who returns was given up too early, and its queue gets a larger part.

    As leaves are only the ends of what is cached, the target is a fraction of queued leaves, not a number of
    chunks; a ghost that returns moves it by one in `ghosts`, as it moves the paper's by one in its capacity.

    Args:
        ghosts: most keys that each queue remembers; the paper: as many as the cache holds.

    Raises:
        InputError: `ghosts` below one.
    """

    def __init__(self, ghosts: int) -> None:
        if ghosts < 1:
            raise InputError(f"arc needs to remember keys, got ghosts={ghosts}")
        self._capacity = ghosts
        self._once = LeafQueue(by_last_use)
        self._again = LeafQueue(by_last_use)
        self._gone_once = Ghosts(ghosts)
        self._gone_again = Ghosts(ghosts)
        self.target_once = 0.0
        """Fraction of queued leaves that those used once may be."""

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence in self:
            return
        key, once, again = residence.node.key, len(self._gone_once), len(self._gone_again)
        if self._gone_once.take(key):
            self.target_once = min(1.0, self.target_once + max(1.0, again / once) / self._capacity)
            residence.credit = _RETURNED
        elif self._gone_again.take(key):
            self.target_once = max(0.0, self.target_once - max(1.0, once / again) / self._capacity)
            residence.credit = _RETURNED
        (self._again if _was_used_again(residence) else self._once).push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._once.discard(residence)
        self._again.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`: a leaf changes queues when it comes up."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while len(self):
            from_once = len(self._once) > self.target_once * len(self) or not self._again
            residence = (self._once if from_once else self._again).pop()
            if residence is None:
                continue
            if from_once and _was_used_again(residence):
                self._again.push(residence)
                continue
            (self._gone_once if from_once else self._gone_again).add(residence.node.key)
            return residence
        return None

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._once or residence in self._again

    def __len__(self) -> int:
        return len(self._once) + len(self._again)


_RETURNED = 1.0
"""`credit` of what was stored again while its key was remembered; what stands above it inherits it."""


def _was_used_again(residence: Residence) -> bool:
    return residence.uses > 1 or residence.credit == _RETURNED
