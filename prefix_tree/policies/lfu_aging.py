"""Least frequently used, with dynamic aging."""

from __future__ import annotations

from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.greedy_dual import GreedyDual


class LfuWithAging(GreedyDual):
    """LFU-DA (Arlitt et al., Evaluating Content Management Techniques for Web Proxy Caches, 1999): uses while in
    the cache plus the inflation at last use, so that uses of long ago count less and less."""

    def value(self, residence: Residence) -> float:
        """Requests that used the leaf or a descendant of it."""
        return residence.uses
