"""A snapshot of the host tier as one caller may see it: its own scopes, in its own keys.

`prefix_tree.take_snapshot` takes in a whole tree. Here even the work must not depend on other tenants' chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from kvtrie.api.tiers.homes import HeldRecord, Home
from kvtrie.api.tiers.host_tier import HOST, HostTier
from kvtrie.prefix_tree import Node, Snapshot
from kvtrie.prefix_tree.snapshot import NamespaceView, NodeView, TierView, TombstoneView


@dataclass(slots=True)
class _Seen:
    """Values of a node that may change once the lock is released."""

    node: Node
    handle: HeldRecord
    namespace: int
    parent: int | None
    hits: int
    last_used_at: float


def take_host_snapshot(
    held: HostTier, scopes: Collection[str] | None, counters: Mapping[str, int | float]
) -> Snapshot:
    """Takes a snapshot of `scopes`, or of all. Only the walk is under the tree's lock. O(nodes of `scopes`)."""
    with held.lock:
        homes = held.homes(scopes)
        seen: list[_Seen] = []
        for number, home in enumerate(homes):
            _walk(home, number, seen)
        namespaces = [NamespaceView(home.namespace.hex(), dict(home.fields)) for home in homes]
        tier = _tier(held, scopes, len(seen))
        tombstones = [
            TombstoneView(scope, s.key.hex(), s.depth, s.tier, s.evicted_at, s.reason)
            for scope, s in held.tombstones
            if scopes is None or scope in scopes
        ]
    # Hits and last use are kept on the deepest node only: see node.py.
    for entry in reversed(seen):
        if entry.parent is not None:
            above = seen[entry.parent]
            above.hits += entry.hits
            above.last_used_at = max(above.last_used_at, entry.last_used_at)
    return Snapshot(
        source="sidecar",
        taken_at=held.tree.clock(),
        chunk_tokens=held.tree.chunk_tokens,
        tiers=[tier],
        namespaces=namespaces,
        nodes=[_view(number, entry, tier.name) for number, entry in enumerate(seen)],
        tombstones=tombstones,
        counters=dict(counters),
    )


def _walk(home: Home, namespace: int, seen: list[_Seen]) -> None:
    stack: list[tuple[Node, int | None]] = [(node, None) for node in reversed(home.root.all_children())]
    while stack:
        node, parent = stack.pop()
        residence = node.at[HOST]
        assert residence is not None
        assert isinstance(residence.handle, HeldRecord)
        number = len(seen)
        seen.append(_Seen(node, residence.handle, namespace, parent, node.hits, node.last_used_at))
        stack.extend((child, number) for child in reversed(node.all_children()))


def _view(number: int, entry: _Seen, tier: str) -> NodeView:
    return NodeView(
        id=number,
        parent=entry.parent,
        namespace=entry.namespace,
        key=entry.handle.link.key.hex(),
        depth=entry.handle.link.depth,
        tokens=np.frombuffer(entry.node.tokens, "<i4").tolist(),
        readers=0,
        hits=entry.hits,
        tiers={tier: len(entry.handle.data)},
        pin=None,
        pending=False,
        created_at=entry.node.created_at,
        last_used_at=entry.last_used_at,
    )


def _tier(held: HostTier, scopes: Collection[str] | None, chunks: int) -> TierView:
    """The tier's figures over `scopes`. Memory that other scopes use counts as free."""
    tier = held.tier
    booked = {name: b for name, b in sorted(tier.scopes.items()) if scopes is None or name in scopes}
    used = sum(b.used_bytes for b in booked.values())
    pending = sum(b.pending_bytes for b in booked.values())
    return TierView(
        name=tier.name,
        capacity_bytes=tier.capacity_bytes,
        used_bytes=used,
        pending_bytes=pending,
        free_bytes=tier.capacity_bytes - used - pending,
        chunks=chunks,
        scopes={
            name: {"used_bytes": b.used_bytes, "pending_bytes": b.pending_bytes} for name, b in booked.items()
        },
    )
