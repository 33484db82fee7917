"""Segmented LRU: a probationary and a protected queue."""

from __future__ import annotations

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.leaf_queue import LeafQueue, Rank, by_last_use


class SegmentedLru:
    """SLRU (Karedla, Love and Wherry, Caching Strategies to Improve Disk System Performance, Computer 1994):
    a leaf is on probation until a second request uses it, then protected. The protected segment is bounded: where
    it is too large, its least recently used leaf is put on probation again, as the youngest there.

    Args:
        protected: largest size of the protected segment, as a fraction of queued leaves.

    Raises:
        InputError: `protected` is not a fraction.
    """

    def __init__(self, protected: float = 0.8) -> None:
        if not 0.0 <= protected <= 1.0:
            raise InputError(f"protected={protected} is not a fraction; 0.8 is usual")
        self._most_protected = protected
        self._probation = LeafQueue(_by_last_use_or_demotion)
        self._protected = LeafQueue(by_last_use)
        self._latest_tick = 0

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        self._latest_tick = max(self._latest_tick, residence.last_use)
        if residence in self:
            return
        (self._protected if _deserves_protection(residence) else self._probation).push(residence)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        self._probation.discard(residence)
        self._protected.discard(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: a leaf is promoted when `victim` reaches it."""

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while True:
            while len(self._protected) > self._most_protected * len(self):
                demoted = self._protected.pop()
                if demoted is None:
                    break
                demoted.credit = max(self._latest_tick, demoted.last_use)
                self._probation.push(demoted)
            residence = self._probation.pop()
            if residence is None:
                return self._protected.pop()
            if not _deserves_protection(residence):
                return residence
            self._protected.push(residence)

    def __contains__(self, residence: Residence) -> bool:
        return residence in self._probation or residence in self._protected

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)


def _deserves_protection(residence: Residence) -> bool:
    """Whether it was used again after it was stored, and after it was last put on probation (its `credit`)."""
    return residence.uses > 1 and residence.last_use > residence.credit


def _by_last_use_or_demotion(residence: Residence) -> Rank:
    return max(residence.last_use, residence.credit), 0
