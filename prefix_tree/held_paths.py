"""A hold on one path: an in-flight request's lease, or an operator's pin.

A hold is counted on one node per tier: the deepest of the path that the tier holds. Everything above it has
a resident child there, and a node with a resident child is never evicted, so the whole path is safe.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtrie.prefix_tree.node import Node, Residence


def residences_to_hold(node: Node) -> list[Residence]:
    """In each tier, the deepest resident node of the path that ends at `node`."""
    held = []
    for tier, residence in enumerate(node.at):
        above = node.parent
        while residence is None and above is not None:
            residence, above = above.at[tier], above.parent
        if residence is not None:
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
        """Uses that the lease adds to each `Residence` of `held`: one for a request, else none. `extend` moves
        it with the lease, so a path is used once however often its request extends it."""


class Pin:
    """An operator's hold on the path to `node`, until `PrefixTree.unpin` or the end of its time."""

    __slots__ = ("ends_seconds", "held", "name", "node")

    def __init__(self, node: Node, held: list[Residence], name: str, ends_seconds: float | None) -> None:
        self.node = node
        self.held = held
        self.name = name
        self.ends_seconds = ends_seconds
        """When its time is over, on the tree's steady clock; None for never."""

    @property
    def expires_at(self) -> float | None:
        """`ends_seconds` as unix seconds, by the wall clock as it is set now. For people."""
        return None if self.ends_seconds is None else self.node.root.unix_of(self.ends_seconds)


def held_bytes(holders: Iterable[Lease | Pin], tier: int, seen: set[Node]) -> int:
    """Bytes in a tier of the paths that are held there, each chunk once; those in `seen` left out, and added."""
    held = 0
    for holder in holders:
        for residence in holder.held:
            node: Node | None = residence.node if residence.tier == tier else None
            while node is not None and node.depth and node not in seen:
                seen.add(node)
                here = node.at[tier]
                assert here is not None, "tiers are prefix-closed"
                held += here.size_bytes
                node = node.parent
    return held
