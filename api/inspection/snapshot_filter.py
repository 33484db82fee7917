"""Filters of a snapshot: one scope, the upper chunks, or the paths with most hits.

Each returns a snapshot whose nodes keep their ids, and that has the parent of every node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvtrie.prefix_tree.snapshot import NodeView, Snapshot, TierView
from kvtrie.prefix_tree.tombstones import tombstone_memory


def only_scope(snapshot: Snapshot, scope: str) -> Snapshot:
    """The chunks of one scope, and those of shared scopes that its paths continue.

    Figures that depend on other scopes are left out: bytes that others use of a tier count as free, as in a
    sidecar's snapshot for one tenant; there are no counters, and only the scope's tombstones.
    """
    own = {i for i, namespace in enumerate(snapshot.namespaces) if namespace.scope == scope}
    kept = _with_ancestors(snapshot, lambda node: node.namespace in own)
    shown = sorted(own | {node.namespace for node in kept})
    number = {old: new for new, old in enumerate(shown)}
    stones = [stone for stone in snapshot.tombstones if stone.scope == scope]
    return replace(
        snapshot,
        tiers=[_own_share(tier, scope, kept) for tier in snapshot.tiers],
        namespaces=[snapshot.namespaces[i] for i in shown],
        nodes=[replace(node, namespace=number[node.namespace]) for node in kept],
        tombstones=stones,
        counters={"tombstone_bytes": tombstone_memory(len(stones), min(1, len(stones)))},
    )


def only_depth(snapshot: Snapshot, chunks: int) -> Snapshot:
    """The first `chunks` chunks of every path."""
    return replace(snapshot, nodes=[node for node in snapshot.nodes if node.depth <= chunks])


def only_hottest(snapshot: Snapshot, paths: int) -> Snapshot:
    """The `paths` paths with most hits at their end.

    A node's hits contain its descendants' hits, so paths are ranked by hits minus their children's hits. If there
    are no hits, as in a store, the first leaves are kept.
    """
    ended = {node.id: node.hits for node in snapshot.nodes}
    parents = set()
    for node in snapshot.nodes:
        if node.parent is not None:
            ended[node.parent] -= node.hits
            parents.add(node.parent)
    ends = [node for node in snapshot.nodes if node.id not in parents or ended[node.id] > 0]
    ends.sort(key=lambda node: -ended[node.id])
    hottest = {node.id for node in ends[:paths]}
    return replace(snapshot, nodes=_with_ancestors(snapshot, lambda node: node.id in hottest))


def _with_ancestors(snapshot: Snapshot, wanted: Callable[[NodeView], bool]) -> list[NodeView]:
    kept: set[int] = set()
    # Parents come before children, so one pass from the end sees every child first.
    for node in reversed(snapshot.nodes):
        if wanted(node) or node.id in kept:
            kept.add(node.id)
            if node.parent is not None:
                kept.add(node.parent)
    return [node for node in snapshot.nodes if node.id in kept]


def _own_share(tier: TierView, scope: str, kept: list[NodeView]) -> TierView:
    booked = {"used_bytes": 0, "pending_bytes": 0, **tier.scopes.get(scope, {})}
    used, pending = booked["used_bytes"], booked["pending_bytes"]
    return TierView(
        name=tier.name,
        capacity_bytes=tier.capacity_bytes,
        used_bytes=used,
        pending_bytes=pending,
        # A store's capacity is unknown and given as 0; then its free bytes are 0 too.
        free_bytes=max(0, tier.capacity_bytes - used - pending),
        chunks=sum(1 for node in kept if tier.name in node.tiers),
        scopes={scope: booked} if scope in tier.scopes else {},
    )
