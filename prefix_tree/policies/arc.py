"""ARC: two LRU queues, for leaves used once and leaves used again, whose sizes adapt to the requests."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.ghosts import Ghosts
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, by_last_use


class AdaptiveReplacement:
    """ARC (Megiddo and Modha, FAST 2003): leaves used once and leaves used again are kept in two LRU queues. Each
    queue has ghosts: the remembered keys of leaves that were evicted from it. If a leaf is stored whose key is a
    ghost, it was evicted too early, and that queue's part grows.

    Only leaves are queued, and they are only the last chunks of cached paths. So the target is a fraction of queued
    leaves, not a number of chunks as in the paper; a ghost moves it by 1 / `ghosts`, as the paper's by 1 /
    capacity.

    Args:
        ghosts: most keys that each queue remembers; in the paper, as many as the cache holds chunks.

    Raises:
        InputError: `ghosts` below one.
    """

    def __init__(self, ghosts: int) -> None:
        if ghosts < 1:
            raise InputError(f"arc must remember at least one evicted key, got ghosts={ghosts}")
        self._capacity = ghosts
        self._once = LeafQueue(by_last_use)
        self._again = LeafQueue(by_last_use)
        self._gone_once = Ghosts(ghosts)
        self._gone_again = Ghosts(ghosts)
        self.target_once = 0.0
        """Target size of the queue of leaves used once, as a fraction of all queued leaves."""

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
        """See `EvictionPolicy.used`. Does nothing: a leaf changes queues when `victim` reaches it."""

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
"""`credit` of a leaf that was stored again while its key was remembered; its ancestors inherit it."""


def _was_used_again(residence: Residence) -> bool:
    return residence.uses > 1 or residence.credit == _RETURNED
