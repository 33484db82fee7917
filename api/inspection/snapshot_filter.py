"""Smaller pictures out of a snapshot: one scope's, the upper chunks, the hottest paths.

Each is a snapshot again, whose nodes keep their ids and whose parents are all there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvtrie.prefix_tree.snapshot import NodeView, Snapshot, TierView
from kvtrie.prefix_tree.tombstones import tombstone_memory


def only_scope(snapshot: Snapshot, scope: str) -> Snapshot:
    """What one scope holds, and the chunks of shared scopes that its paths run through.

    Figures that depend on other scopes are left out: what others use of a tier counts as free, as in a
    sidecar's picture for one tenant; counters are gone, and tombstones are the scope's.
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
    """The `paths` paths on which most hits ended.

    A node's hits contain those of its descendants, so what ranks a path is what its children do not
    explain. Where nothing was hit, as in a store, the first leaves stay.
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
        # A store's capacity is not known: it is 0, and so is what is free of it.
        free_bytes=max(0, tier.capacity_bytes - used - pending),
        chunks=sum(1 for node in kept if tier.name in node.tiers),
        scopes={scope: booked} if scope in tier.scopes else {},
    )
