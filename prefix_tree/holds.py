"""Holds on paths: leases of requests in flight, and operators' pins.

A hold sits on one node per tier: the deepest of the path that the tier holds. Everything above it has
a resident child there, and a node with a resident child is never evicted, so the whole path is safe.
"""

from __future__ import annotations

from kvtrie.prefix_tree.node import Node, Residence


def residences_to_hold(node: Node) -> list[Residence]:
    """In each tier, the deepest resident node of the path that ends at `node`."""
    held = []
    for tier in range(len(node.at)):
        walk: Node | None = node
        while walk is not None and walk.at[tier] is None:
            walk = walk.parent
        if walk is not None:
            residence = walk.at[tier]
            assert residence is not None
            held.append(residence)
    return held


class Lease:
    """An in-flight request's hold on the path to `node`. Ends with `PrefixTree.release`."""

    __slots__ = ("held", "matched", "node", "uses")

    def __init__(self, node: Node, held: list[Residence], uses: int = 0) -> None:
        self.node = node
        self.held = held
        self.matched = {residence.tier: residence.node.depth for residence in held} if uses else {}
        """Chunks of the path that each tier held when the request came."""
        self.uses = uses
        """What it counts for in `Residence.uses` of each of `held`: one for a request, which goes where the
        lease goes, so that a path is used once however often its request extends it."""


class Pin:
    """An operator's hold on the path to `node`, until `expires_at` (unix seconds) if that is set."""

    __slots__ = ("expires_at", "held", "name", "node")

    def __init__(self, node: Node, held: list[Residence], name: str, expires_at: float | None) -> None:
        self.node = node
        self.held = held
        self.name = name
        self.expires_at = expires_at
