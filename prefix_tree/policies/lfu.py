"""Least frequently used."""

from __future__ import annotations

from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.leaf_queue import Rank, RankedLeaves


class LeastFrequentlyUsed(RankedLeaves):
    """LFU over leaves: fewest requests while in the cache first, ties by LRU ("in-cache LFU" in Breslau et al.,
    Web Caching and Zipf-like Distributions, INFOCOM 1999). A chunk that is stored again after its eviction starts
    at no uses.
    """

    def rank(self, residence: Residence) -> Rank:
        """Uses, then last use."""
        return residence.uses, residence.last_use
