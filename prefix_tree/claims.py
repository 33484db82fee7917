"""Claims: who is computing which chunk, so that one chunk is computed once.

The first request to need a chunk claims a pending node for it; later ones see `Match.awaits` and
wait without holding slots. A claim that is abandoned (cancelled, preempted, failed) leaves its
unpublished nodes unclaimed: the first waiter to match again finds nothing there and claims them.
"""

from __future__ import annotations

from kvtrie.prefix_tree.node import Node


class Claim:
    """Pending nodes of one request, in path order; `PrefixTree.publish` takes them one by one."""

    __slots__ = ("nodes",)

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
