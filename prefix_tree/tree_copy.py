"""A snapshot of a tree in two parts: a copy of what may change, then the snapshot, made from the copy alone.

Only the first part needs the lock of the tree's owner. The copy holds nodes by reference: their tokens, keys,
depths and times of making never change. All else that a snapshot shows is copied, a flat list per field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """A snapshot of a tree that nothing changes meanwhile; else see `copy_tree`. O(nodes)."""
    return copy_tree(tree).snapshot(source, counters)


def copy_tree(tree: PrefixTree) -> TreeCopy:
    """Copies what a snapshot needs of a tree. Hold the lock of the tree's owner while calling it.

    Consistency: the copy is all of the tree at one moment, because nothing may change while it is made. That takes
    about half a microsecond for each node, lease, pin and scope; the snapshot, made later without the lock, takes
    thirty times as long.
    """
    nodes = tree.nodes()
    return TreeCopy(
        taken_at=tree.unix_of(tree.steady()),
        unix_less_steady=tree.unix_of(0.0),
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
    """Add it to steady seconds to get unix seconds."""
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
        """Makes the snapshot. Needs no lock; later changes of the tree do not show."""
        # 1. Order nodes depth first, by their place in `nodes`; a root has a negative place.
        number = {root: i for i, root in enumerate(self.roots)}
        place_of = {node: place for place, node in enumerate(self.nodes)}
        above = [place_of[parent] if parent.depth else -1 - number[parent.root] for parent in self.parents]
        order = list(self._depth_first(above, number))
        # 2. Add up figures from the leaves to the roots.
        readers, hits, used_seconds, pins = self._settle_upwards(order, above, place_of)
        # 3. Views, numbered in that order.
        ids = [0] * len(order)
        for i, place in enumerate(order):
            ids[place] = i
        residences = [(tier.name, at) for tier, at in zip(self.tiers, self.at)]
        views: list[NodeView] = []
        for i, place in enumerate(order):
            node, parent = self.nodes[place], above[place]
            views.append(
                NodeView(
                    id=i,
                    parent=None if parent < 0 else ids[parent],
                    namespace=number[node.root],
                    key=node.key.hex(),
                    depth=node.depth,
                    tokens=np.frombuffer(node.tokens, np.int32).tolist(),
                    readers=readers[place],
                    hits=hits[place],
                    tiers={
                        name: here.size_bytes for name, at in residences if (here := at[place]) is not None
                    },
                    pin=pins.get(place),
                    pending=self.pending[place],
                    created_at=self._unix(node.created_seconds),
                    last_used_at=self._unix(used_seconds[place]),
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

    def _depth_first(self, above: list[int], number: Mapping[Root, int]) -> Iterator[int]:
        """Places in `nodes`: parents first, children in token order, those of other namespaces after the own.

        Args:
            above: the parent's place, of each node.
            number: of each root.
        """
        nodes = self.nodes
        children: dict[int, int | list[int]] = {}
        for place, parent in enumerate(above):
            others = children.setdefault(parent, place)
            if others == place:
                continue
            if isinstance(others, list):
                others.append(place)
            else:
                children[parent] = [others, place]

        def sibling_order(place: int) -> tuple[bool, int, bytes]:
            node = nodes[place]
            return node.root is not self.parents[place].root, number[node.root], node.tokens

        stack: list[int] = []
        for parent in range(-len(self.roots), 0):
            stack += _last_first(children.get(parent), sibling_order)
        while stack:
            place = stack.pop()
            yield place
            stack += _last_first(children.get(place), sibling_order)

    def _settle_upwards(
        self, order: list[int], above: list[int], place_of: Mapping[Node, int]
    ) -> tuple[list[int], list[int], list[float], dict[int, PinView]]:
        """Readers, hits, last use and longest pin of each node, by place, with those of its subtree.

        They are kept on the deepest node only: see node.py.
        """
        readers, hits, used_seconds = [0] * len(order), self.hits.copy(), self.used_seconds.copy()
        pins: dict[int, PinView] = {}
        for node in self.leased:
            if node.depth:
                readers[place_of[node]] += 1
        for node, name, ends_seconds in self.pinned:
            expires_at = None if ends_seconds is None else self._unix(ends_seconds)
            _add_pin(pins, place_of[node], PinView(name, expires_at))
        for place in reversed(order):
            parent = above[place]
            if parent >= 0:
                readers[parent] += readers[place]
                hits[parent] += hits[place]
                if used_seconds[place] > used_seconds[parent]:
                    used_seconds[parent] = used_seconds[place]
                if place in pins:
                    _add_pin(pins, parent, pins[place])
        return readers, hits, used_seconds, pins


def _last_first(
    children: int | list[int] | None, order: Callable[[int], tuple[bool, int, bytes]]
) -> Sequence[int]:
    """An only child, or all of them in reverse order, for a stack."""
    if children is None:
        return ()
    return (children,) if isinstance(children, int) else sorted(children, key=order, reverse=True)


def _add_pin(pins: dict[int, PinView], place: int, pin: PinView) -> None:
    """Shows `pin` at a place, unless one that holds longer is shown there."""
    shown = pins.get(place)
    if shown is None or (
        shown.expires_at is not None and (pin.expires_at is None or pin.expires_at > shown.expires_at)
    ):
        pins[place] = pin


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
