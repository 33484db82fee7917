"""Totals over a snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.snapshot import Snapshot, TierView
from kvtrie.prefix_tree.tombstones import tombstone_memory


@dataclass(frozen=True, slots=True)
class SnapshotStats:
    """Totals over all of a snapshot."""

    source: str
    taken_at: float
    """Unix seconds."""
    tiers: list[TierView]
    namespaces: int
    scopes: list[str]
    nodes: int
    """Chunks, pending ones included."""
    pending_nodes: int
    pinned_nodes: int
    leased_nodes: int
    orphans: int
    """Chunks whose parent a store lacks."""
    hits: int
    """Requests that reused at least one chunk still in the tree."""
    deepest_chunks: int
    deepest_tokens: int
    """Tokens of the longest path, chunks that a store lacks of it included."""
    paths: int
    """Nodes without children: distinct stored sequences."""
    unique_tokens: int
    """Tokens held, each chunk once."""
    path_tokens: int
    """Tokens of all paths if each had its own copy of every chunk."""
    tombstones: int
    tombstone_bytes: int
    counters: dict[str, int | float]


def snapshot_stats(snapshot: Snapshot) -> SnapshotStats:
    """Counts a snapshot. Tokens of pending chunks do not count as stored. O(nodes)."""
    # 1. Pending chunks are in the tree and hold nothing yet: leaves and tokens are of resident ones.
    parents = {node.parent for node in snapshot.nodes if node.tiers}
    chunk_tokens = [int(namespace.fields["chunk_tokens"]) for namespace in snapshot.namespaces]
    resident = [node for node in snapshot.nodes if node.tiers]
    leaves = [node for node in resident if node.id not in parents]
    # 2. Hits of a top node contain its descendants', so the sum is over tops.
    return SnapshotStats(
        source=snapshot.source,
        taken_at=snapshot.taken_at,
        tiers=snapshot.tiers,
        namespaces=len(snapshot.namespaces),
        scopes=sorted({namespace.scope for namespace in snapshot.namespaces}),
        nodes=len(snapshot.nodes),
        pending_nodes=sum(node.pending for node in snapshot.nodes),
        pinned_nodes=sum(node.pin is not None for node in snapshot.nodes),
        leased_nodes=sum(node.readers > 0 for node in snapshot.nodes),
        orphans=sum(node.parent is None and node.depth > 1 for node in snapshot.nodes),
        hits=sum(node.hits for node in snapshot.nodes if node.parent is None),
        deepest_chunks=max((node.depth for node in resident), default=0),
        deepest_tokens=max((node.depth * chunk_tokens[node.namespace] for node in resident), default=0),
        paths=len(leaves),
        unique_tokens=sum(len(node.tokens) for node in resident),
        path_tokens=sum(node.depth * chunk_tokens[node.namespace] for node in leaves),
        tombstones=len(snapshot.tombstones),
        tombstone_bytes=tombstone_memory(
            len(snapshot.tombstones), len({stone.scope for stone in snapshot.tombstones})
        ),
        counters=snapshot.counters,
    )
