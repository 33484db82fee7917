"""A frozen picture of a tree: what `dump`, `explain` and `stats` read, whatever it was taken from.

The engine, the sidecar and a store full of records all yield this one document, so the CLI renders
it without knowing where it came from. JSON in and out; no code in the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.namespace import namespace_fields
from kvtrie.prefix_tree.node import Node, Root
from kvtrie.prefix_tree.tree import PrefixTree

FORMAT = "kvtrie-snapshot"
VERSION = 1


@dataclass(frozen=True, slots=True)
class PinView:
    """A pin that ends at this node."""

    name: str
    expires_at: float | None
    """Unix seconds; None for no expiry."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One chunk."""

    id: int
    parent: int | None
    """`id` of the node above; None for a first chunk, or where a store lacks the record above."""
    namespace: int
    """Index into `Snapshot.namespaces`."""
    key: str
    """Chunk key, hex."""
    depth: int
    """Chunks from the root, counting this one."""
    tokens: list[int]
    readers: int
    """Leases on this node or below it."""
    hits: int
    """Requests that reused this chunk."""
    tiers: dict[str, int]
    """Bytes by tier that holds it; empty while it is being computed."""
    pin: PinView | None
    """The pin that holds this node or one below it longest, or None."""
    pending: bool
    """Being computed right now."""
    created_at: float
    """Unix seconds."""
    last_used_at: float
    """Unix seconds; the latest use of this node or of one below it."""


@dataclass(frozen=True, slots=True)
class NamespaceView:
    """One namespace: its digest (hex) and its public fields (`Namespace.public_fields`)."""

    digest: str
    fields: dict[str, str | int]

    @property
    def scope(self) -> str:
        """The tenant or shared scope it belongs to."""
        return str(self.fields["scope"])


@dataclass(frozen=True, slots=True)
class TierView:
    """One tier's figures, in bytes."""

    name: str
    capacity_bytes: int
    used_bytes: int
    pending_bytes: int
    free_bytes: int
    chunks: int
    scopes: dict[str, dict[str, int]]
    """`used_bytes` and `pending_bytes` of each scope."""


@dataclass(frozen=True, slots=True)
class TombstoneView:
    """One remembered eviction."""

    scope: str
    key: str
    depth: int
    tier: str
    evicted_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole picture. `nodes` are in depth-first order, parents before children."""

    source: str
    """`engine`, `sidecar` or `store`."""
    taken_at: float
    """Unix seconds."""
    chunk_tokens: int
    tiers: list[TierView]
    namespaces: list[NamespaceView]
    nodes: list[NodeView]
    tombstones: list[TombstoneView] = field(default_factory=list)
    counters: dict[str, int | float] = field(default_factory=dict)
    """Totals since start: requests, prompt_tokens, cached_tokens, evictions.<reason>, ..."""

    def to_json(self) -> str:
        """The document `from_json` reads."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """Reads a document written by `to_json`.

        Raises:
            InputError: not JSON, not a snapshot, of another version, or with fields missing.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a kvtrie snapshot: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InputError("not a kvtrie snapshot: write one with PrefixCachedModel.snapshot(path)")
        if document.get("version") != VERSION:
            raise InputError(f"snapshot version {document.get('version')!r} is not {VERSION}")
        try:
            return _parse(document)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"damaged kvtrie snapshot: {error!r}") from None


def _parse(document: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        source=document["source"],
        taken_at=document["taken_at"],
        chunk_tokens=document["chunk_tokens"],
        tiers=[TierView(**tier) for tier in document["tiers"]],
        namespaces=[
            NamespaceView(n["digest"], namespace_fields(n["fields"])) for n in document["namespaces"]
        ],
        nodes=[
            NodeView(**{**node, "pin": None if node["pin"] is None else PinView(**node["pin"])})
            for node in document["nodes"]
        ],
        tombstones=[TombstoneView(**stone) for stone in document["tombstones"]],
        counters=dict(document["counters"]),
    )


def take_snapshot(
    tree: PrefixTree, source: str, counters: Mapping[str, int | float] | None = None
) -> Snapshot:
    """Pictures a tree as it is now. O(nodes)."""
    roots = tree.roots()
    number = {id(root): i for i, root in enumerate(roots)}
    order = list(tree.walk())
    ids = {id(node): i for i, node in enumerate(order)}
    below = _settle_upwards(tree, order)
    nodes = [
        NodeView(
            id=ids[id(node)],
            parent=None if node.parent is None or isinstance(node.parent, Root) else ids[id(node.parent)],
            namespace=number[id(node.root)],
            key=node.key.hex(),
            depth=node.depth,
            tokens=np.frombuffer(node.tokens, np.int32).tolist(),
            readers=below[id(node)].readers,
            hits=below[id(node)].hits,
            tiers={tree.tiers[i].name: r.size_bytes for i, r in enumerate(node.at) if r is not None},
            pin=below[id(node)].pin,
            pending=node.claim is not None,
            created_at=node.created_at,
            last_used_at=below[id(node)].last_used_at,
        )
        for node in order
    ]
    return Snapshot(
        source=source,
        taken_at=tree.clock(),
        chunk_tokens=tree.chunk_tokens,
        tiers=[
            TierView(
                t.name, t.capacity_bytes, t.used_bytes, t.pending_bytes, t.free_bytes, t.chunks,
                {scope: asdict(booked) for scope, booked in t.scopes.items()},
            )
            for t in tree.tiers
        ],
        namespaces=[NamespaceView(r.key.hex(), r.namespace.public_fields()) for r in roots],
        nodes=nodes,
        tombstones=[
            TombstoneView(scope, s.key.hex(), s.depth, s.tier, s.evicted_at, s.reason)
            for scope, s in tree.tombstones
        ],
        counters={
            **(counters or {}),
            **{f"evictions.{reason}": count for reason, count in tree.evictions.items()},
            "tombstone_bytes": tree.tombstones.size_bytes,
        },
    )  # fmt: skip


@dataclass(slots=True)
class _Below:
    """What a node inherits from its subtree (see node.py: kept on the deepest node only)."""

    readers: int
    hits: int
    last_used_at: float
    pin: PinView | None


def _settle_upwards(tree: PrefixTree, order: list[Node]) -> dict[int, _Below]:
    below = {id(node): _Below(0, node.hits, node.last_used_at, None) for node in order}
    for lease in tree.leases:
        if lease.node.depth:
            below[id(lease.node)].readers += 1
    for pin in tree.pins:
        here = below[id(pin.node)]
        here.pin = _longer(here.pin, PinView(pin.name, pin.expires_at))
    for node in reversed(order):
        above = below.get(id(node.parent))
        if above is not None:
            mine = below[id(node)]
            above.readers += mine.readers
            above.hits += mine.hits
            above.last_used_at = max(above.last_used_at, mine.last_used_at)
            above.pin = _longer(above.pin, mine.pin)
    return below


def _longer(one: PinView | None, other: PinView | None) -> PinView | None:
    if one is None or other is None:
        return one or other
    if one.expires_at is None or (other.expires_at is not None and other.expires_at <= one.expires_at):
        return one
    return other
