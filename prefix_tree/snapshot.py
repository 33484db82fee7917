"""A snapshot of a tree: the document that `dump`, `explain` and `stats` read, whatever it was taken from.

The engine, the sidecar and a store full of records all yield this one document, so the CLI renders
it without knowing where it came from. JSON in and out; no code in the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.namespace import namespace_fields

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
