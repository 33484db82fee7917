"""Picturing a tree in two parts: a copy of what may change, then the snapshot, made from the copy alone.

Only the first part needs the lock of the tree's owner. The copy holds nodes by reference: their tokens, keys,
depths and times of making never change. All else that a snapshot shows is copied, a flat list per field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from kvtrie.prefix_tree.node import Node, Residence, Root
from kvtrie.prefix_tree.snapshot import NamespaceView, NodeView, PinView, Snapshot, TierView, TombstoneView
from kvtrie.prefix_tree.tier import Tier
from kvtrie.prefix_tree.tombstones import Tombstone
from kvtrie.prefix_tree.tree import PrefixTree


def take_snapshot(
    tree: PrefixTree, source: str, counters: Mapping[str, int | float] | None = None
) -> Snapshot:
    """Pictures a tree as it is now, for one that nothing changes meanwhile; else see `copy_tree`. O(nodes)."""
    return copy_tree(tree).snapshot(source, counters)


def copy_tree(tree: PrefixTree) -> TreeCopy:
    """Copies what a snapshot needs of a tree. To be called under the lock of the tree's owner.

    Consistency: the copy is all of the tree at one moment, because nothing may change while it is made. That takes
    about half a microsecond for each node, lease, pin and scope; the snapshot, made later without the lock, takes
    thirty times as long.
    """
    nodes, now, taken_at = tree.nodes(), tree.steady(), tree.clock()
    return TreeCopy(
        taken_at=taken_at,
        unix_less_steady=taken_at - now,
        chunk_tokens=tree.chunk_tokens,
        roots=tree.roots(),
        nodes=nodes,
        parents=list(map(attrgetter("parent"), nodes)),
        hits=list(map(attrgetter("hits"), nodes)),
        used_seconds=list(map(attrgetter("used_seconds"), nodes)),
        pending=[node.claim is not None for node in nodes],
        at=[[node.at[tier] for node in nodes] for tier in range(len(tree.tiers))],
        leased=[lease.node for lease in tree.leases],
        pinned=[(pin.node, pin.name, pin.ends_seconds) for pin in tree.pins],
        tiers=[_tier_view(tier) for tier in tree.tiers],
        tombstones=tree.tombstones.by_scope(),
        counters={
            **{f"evictions.{reason}": count for reason, count in tree.evictions.items()},
            **tree.figures(),
        },
    )


@dataclass(frozen=True, slots=True)
class TreeCopy:
    """A tree at one moment. Lists named after a field of nodes are parallel to `nodes`."""

    taken_at: float
    """Unix seconds."""
    unix_less_steady: float
    """Added to a time of the tree's steady clock it makes unix seconds."""
    chunk_tokens: int
    roots: list[Root]
    nodes: list[Node]
    """In no order."""
    parents: list[Node]
    hits: list[int]
    used_seconds: list[float]
    pending: list[bool]
    at: list[list[Residence | None]]
    """By tier."""
    leased: list[Node]
    """The node of each lease."""
    pinned: list[tuple[Node, str, float | None]]
    """Node, name and end, on the steady clock, of each pin."""
    tiers: list[TierView]
    tombstones: list[tuple[str, list[Tombstone]]]
    counters: dict[str, int | float]

    def snapshot(self, source: str, counters: Mapping[str, int | float] | None = None) -> Snapshot:
        """The snapshot. Needs no lock; what the tree has become meanwhile does not show."""
        number = {root: i for i, root in enumerate(self.roots)}
        order = list(self._depth_first(number))
        place_of = {node: place for place, node in enumerate(self.nodes)}
        below = self._settle_upwards(order, place_of)
        id_of = {place: i for i, place in enumerate(order)}
        names = [tier.name for tier in self.tiers]
        views: list[NodeView] = []
        for i, place in enumerate(order):
            node, mine = self.nodes[place], below[place]
            above = place_of.get(self.parents[place])
            views.append(
                NodeView(
                    id=i,
                    parent=None if above is None else id_of[above],
                    namespace=number[node.root],
                    key=node.key.hex(),
                    depth=node.depth,
                    tokens=np.frombuffer(node.tokens, np.int32).tolist(),
                    readers=mine.readers,
                    hits=mine.hits,
                    tiers={
                        name: here.size_bytes
                        for name, residences in zip(names, self.at)
                        if (here := residences[place]) is not None
                    },
                    pin=mine.pin,
                    pending=self.pending[place],
                    created_at=self._unix(node.created_seconds),
                    last_used_at=self._unix(mine.used_seconds),
                )
            )
        return Snapshot(
            source=source,
            taken_at=self.taken_at,
            chunk_tokens=self.chunk_tokens,
            tiers=self.tiers,
            namespaces=[NamespaceView(r.key.hex(), r.namespace.public_fields()) for r in self.roots],
            nodes=views,
            tombstones=[
                TombstoneView(scope, s.key.hex(), s.depth, s.tier, self._unix(s.evicted_at), s.reason)
                for scope, stones in self.tombstones
                for s in stones
            ],
            counters={**(counters or {}), **self.counters},
        )

    def _unix(self, steady_seconds: float) -> float:
        return steady_seconds + self.unix_less_steady

    def _depth_first(self, number: Mapping[Root, int]) -> Iterator[int]:
        """Places in `nodes`: parents first, children in token order, those of other namespaces after the own."""
        children: dict[Node, list[int]] = {}
        for place, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(place)
        nodes = self.nodes
        for parent, places in children.items():
            if len(places) > 1:
                own = parent.root
                places.sort(
                    key=lambda p: (nodes[p].root is not own, number[nodes[p].root], nodes[p].tokens),
                    reverse=True,
                )
        stack = [place for root in reversed(self.roots) for place in children.get(root, ())]
        while stack:
            place = stack.pop()
            yield place
            stack += children.get(nodes[place], ())

    def _settle_upwards(self, order: list[int], place_of: Mapping[Node, int]) -> list[_Below]:
        below = [_Below(0, hits, used, None) for hits, used in zip(self.hits, self.used_seconds)]
        for node in self.leased:
            if node.depth:
                below[place_of[node]].readers += 1
        for node, name, ends_seconds in self.pinned:
            here = below[place_of[node]]
            expires_at = None if ends_seconds is None else self._unix(ends_seconds)
            here.pin = _longer(here.pin, PinView(name, expires_at))
        for place in reversed(order):
            parent = place_of.get(self.parents[place])
            if parent is not None:
                above, mine = below[parent], below[place]
                above.readers += mine.readers
                above.hits += mine.hits
                above.used_seconds = max(above.used_seconds, mine.used_seconds)
                above.pin = _longer(above.pin, mine.pin)
        return below


@dataclass(slots=True)
class _Below:
    """What a node inherits from its subtree (see node.py: kept on the deepest node only)."""

    readers: int
    hits: int
    used_seconds: float
    pin: PinView | None


def _longer(one: PinView | None, other: PinView | None) -> PinView | None:
    if one is None or other is None:
        return one or other
    if one.expires_at is None or (other.expires_at is not None and other.expires_at <= one.expires_at):
        return one
    return other


def _tier_view(tier: Tier) -> TierView:
    return TierView(
        name=tier.name,
        capacity_bytes=tier.capacity_bytes,
        used_bytes=tier.used_bytes,
        pending_bytes=tier.pending_bytes,
        free_bytes=tier.free_bytes,
        chunks=tier.chunks,
        scopes={
            scope: {"used_bytes": booked.used_bytes, "pending_bytes": booked.pending_bytes}
            for scope, booked in tier.scopes.items()
        },
    )
