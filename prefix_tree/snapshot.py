"""A snapshot of a tree: the document that `dump`, `explain` and `stats` read, whatever it was taken from.

The engine, the sidecar and a store full of records all yield this one document, so the CLI renders
it without knowing where it came from. JSON in and out; no code in the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.namespace import namespace_fields
from kvtrie.prefix_tree.read_json import read_json

FORMAT = "kvtrie-snapshot"
VERSION = 1

REMEDY = "write one with PrefixCachedModel.snapshot(path) or kvtrie dump --format json"
"""How to get a snapshot that can be read."""


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
            InputError: not JSON, not a snapshot, of another version, or with fields missing or unknown.
        """
        try:
            document = read_json(text)
        except InputError as error:
            raise InputError(f"not a kvtrie snapshot: it {error}; {REMEDY}") from None
        if not isinstance(document, dict) or "format" not in document:
            raise InputError(f"not a kvtrie snapshot: it is other JSON; {REMEDY}")
        if document["format"] != FORMAT:
            raise InputError(f"not a kvtrie snapshot: its format is {_shown(document['format'])}; {REMEDY}")
        if document.get("version") != VERSION:
            found = _shown(document.get("version"))
            raise InputError(
                f"snapshot version {found} is not {VERSION}: read it with the kvtrie that wrote it"
            )
        return _parse(document)


_VIEWS: dict[str, type[Any]] = {
    "tiers": TierView,
    "namespaces": NamespaceView,
    "nodes": NodeView,
    "tombstones": TombstoneView,
}


def _parse(document: Mapping[str, Any]) -> Snapshot:
    fields_of_all = _fields_of(
        Snapshot, {k: v for k, v in document.items() if k not in ("format", "version")}, "it"
    )
    views = {
        name: [_view(kind, item, f"{name}[{i}]") for i, item in enumerate(_list(fields_of_all[name], name))]
        for name, kind in _VIEWS.items()
    }
    counters = fields_of_all["counters"]
    if not isinstance(counters, Mapping):
        raise _damaged("counters", f"is {_shown(counters)}, and no object")
    return Snapshot(**{**fields_of_all, **views, "counters": dict(counters)})


def _view(kind: type[Any], item: object, where: str) -> Any:
    found = _fields_of(kind, item, where)
    if kind is NodeView and found["pin"] is not None:
        found["pin"] = PinView(**_fields_of(PinView, found["pin"], f"{where}.pin"))
    if kind is NamespaceView:
        if not isinstance(found["fields"], Mapping):
            raise _damaged(f"{where}.fields", f"is {_shown(found['fields'])}, and no object")
        try:
            found["fields"] = namespace_fields(found["fields"])
        except InputError as error:
            raise _damaged(where, f"is not usable: {error}") from None
    return kind(**found)


def _fields_of(kind: type[Any], item: object, where: str) -> dict[str, Any]:
    """The fields of a view; all of them, and no others."""
    if not isinstance(item, Mapping):
        raise _damaged(where, f"is {_shown(item)}, and no object")
    wanted = [f.name for f in fields(kind)]
    for name in wanted:
        if name not in item:
            raise _damaged(where, f"lacks {name}")
    for name in item:
        if name not in wanted:
            raise _damaged(where, f"has a field {_shown(name)}, which no snapshot of version {VERSION} has")
    return dict(item)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _damaged(where, f"is {_shown(value)}, and no list")
    return value


def _damaged(where: str, problem: str) -> InputError:
    return InputError(f"damaged kvtrie snapshot: {where} {problem}; {REMEDY}")


def _shown(value: object) -> str:
    # From outside: on one line, without control characters.
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
