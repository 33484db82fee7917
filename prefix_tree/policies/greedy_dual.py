"""Greedy-dual: each leaf has a value plus the inflation at its last use.

Every eviction raises the inflation, so leaves that are not used fall behind.
"""

from __future__ import annotations

from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.leaf_queue import Rank, RankedLeaves


class GreedyDual(RankedLeaves):
    """Evicts the leaf with the least `inflation at last use + value` (Cao and Irani, Cost-Aware WWW Proxy
    Caching Algorithms, USITS 1997). The inflation is the rank of the last victim, so it only rises, and a
    leaf that was valuable and is not used any more is overtaken by others. Ties by LRU.

    A leaf's inflation at last use is its `credit`; an inner node inherits the highest of its children's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inflation = 0.0
        """Rank of the last victim."""

    def value(self, residence: Residence) -> float:
        """Worth of keeping a leaf, without inflation; must not fall as its uses rise."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def rank(self, residence: Residence) -> Rank:
        """Inflation at last use plus value, then last use."""
        return residence.credit + self.value(residence), residence.last_use

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        if residence.credit == 0.0 and residence not in self:
            residence.credit = self.inflation  # stored just now, or before the first eviction
        super().add(residence)

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`."""

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`."""
        residence.credit = self.inflation

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        residence = super().victim()
        if residence is not None:
            self.inflation = max(self.inflation, self.rank(residence)[0])
        return residence
