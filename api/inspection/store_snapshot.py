"""A snapshot of a store, rebuilt from its records alone: the processes that wrote them need not be running.

A record has its parent's key within its own namespace. Where a tenant continued a path of a shared scope, the
parent's record is in the shared namespace, under that namespace's key; it is found by computing the tenant's keys
along the shared paths.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice

import numpy as np
from xxhash import xxh3_128_digest

from kvtrie.prefix_tree.errors import RecordError
from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.snapshot import NamespaceView, NodeView, Snapshot, TierView
from kvtrie.store import Record, Store, decode_namespace, decode_record

UNKNOWN = "unknown"
"""Value of every text field of a namespace whose own record the store lacks."""

_BATCH_RECORDS = 8
"""Records read at once: each may be megabytes, and a store's deadline holds for the batch."""
_DEFAULT_CHUNK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class _Chunk:
    namespace: bytes
    key: bytes
    parent_key: bytes
    path_digest: bytes
    depth: int
    tokens: bytes
    size_bytes: int
    created_at: int


def store_snapshot(store: Store, tier: str, store_key: bytes | None = None) -> Snapshot:
    """Reads every record of `store`; returns a snapshot of the tree they form, in one tier called `tier`.

    Chunks whose parent is missing have no `parent` though their `depth` is above 1 (orphans). Records that
    are damaged, or contradict their parent, are left out. Both are counted: `store.records`,
    `store.orphans`, `store.corrupt` and `store.corrupt.<reason>`, `store.unnamed_namespaces`. The
    capacity of a store is unknown: the tier's is 0. A chunk's last use is the time it was written.

    Raises:
        StoreUnavailable: the store failed while it was read.
        InputError: the store key is not of 16 to 64 bytes.
    """
    # 1. Read all records: namespaces' own, and chunks.
    counters: Counter[str] = Counter()
    names: dict[bytes, dict[str, str | int]] = {}
    found: list[_Chunk] = []
    for record, size_bytes in _intact(store, store_key, counters):
        if record.depth:
            found.append(_chunk(record, size_bytes))
            continue
        try:
            names[record.namespace] = decode_namespace(record)
        except RecordError as error:
            _count_corrupt(counters, error.reason)
    # 2. Form the tree; a namespace without a record of its own gets unknown fields.
    chunks, parents = _link(found, names, counters)
    unnamed = {chunk.namespace for chunk in chunks.values()} - set(names)
    lengths = {chunk.namespace: len(chunk.tokens) // 4 for chunk in chunks.values()}
    for digest in unnamed:
        names[digest] = _unknown_fields(lengths[digest])
    digests = sorted(names, key=lambda digest: (str(names[digest]["scope"]), digest))
    nodes = _nodes(chunks, parents, digests, tier)
    # 3. Figures.
    used: Counter[str] = Counter()
    for node in nodes:
        used[str(names[digests[node.namespace]]["scope"])] += node.tiers[tier]
    orphans = sum(1 for node in nodes if node.parent is None and node.depth > 1)
    counters.update({"store.orphans": orphans, "store.unnamed_namespaces": len(unnamed), "store.corrupt": 0})
    counters["store.records"] += 0
    per_chunk = Counter(int(names[digest]["chunk_tokens"]) for digest in digests).most_common(1)
    return Snapshot(
        source="store",
        taken_at=time.time(),
        chunk_tokens=per_chunk[0][0] if per_chunk else _DEFAULT_CHUNK_TOKENS,
        tiers=[
            TierView(
                name=tier,
                capacity_bytes=0,
                used_bytes=used.total(),
                pending_bytes=0,
                free_bytes=0,
                chunks=len(nodes),
                scopes={
                    scope: {"used_bytes": size, "pending_bytes": 0} for scope, size in sorted(used.items())
                },
            )
        ],
        namespaces=[NamespaceView(digest.hex(), names[digest]) for digest in digests],
        nodes=nodes,
        counters=dict(counters),
    )


def _intact(store: Store, store_key: bytes | None, counters: Counter[str]) -> Iterator[tuple[Record, int]]:
    """Every record that belongs to the key it is stored under, and its size in bytes."""
    seen: set[bytes] = set()
    keys = store.scan()
    while batch := list(islice(keys, _BATCH_RECORDS)):
        wanted = [key for key in dict.fromkeys(batch) if key not in seen]
        seen.update(wanted)
        for key, data in zip(wanted, store.get_many(wanted)):
            if data is None:
                continue
            counters["store.records"] += 1
            try:
                record = decode_record(data, store_key)
                _expect_own_key(record, key)
            except RecordError as error:
                _count_corrupt(counters, error.reason)
                continue
            yield record, len(data)


def _expect_own_key(record: Record, key: bytes) -> None:
    if record.key != key:
        raise RecordError("key", f"record {record.key.hex()} is stored under the key {key.hex()}")
    if record.depth:
        above = record.namespace if record.depth == 1 else record.parent_key
        if xxh3_128_digest(above + record.tokens) != record.key:
            raise RecordError("key", f"{record.key.hex()} is not the key of its parent and tokens")


def _count_corrupt(counters: Counter[str], reason: str) -> None:
    counters["store.corrupt"] += 1
    counters[f"store.corrupt.{reason}"] += 1


def _chunk(record: Record, size_bytes: int) -> _Chunk:
    return _Chunk(
        namespace=record.namespace,
        key=record.key,
        parent_key=record.parent_key,
        path_digest=record.path_digest,
        depth=record.depth,
        tokens=record.tokens,
        size_bytes=size_bytes,
        created_at=record.created_at_seconds,
    )


def _link(
    found: Iterable[_Chunk], names: dict[bytes, dict[str, str | int]], counters: Counter[str]
) -> tuple[dict[bytes, _Chunk], dict[bytes, bytes | None]]:
    """Chunks by key, parents first, and for each the key that its parent has in the store."""
    chunks: dict[bytes, _Chunk] = {}
    parents: dict[bytes, bytes | None] = {}
    strays: list[_Chunk] = []
    # 1. Parents of the same namespace; depth and path digest must follow from the parent's.
    for chunk in sorted(found, key=lambda chunk: chunk.depth):
        parent = chunks.get(chunk.parent_key) if chunk.depth > 1 else None
        if parent is not None and parent.namespace != chunk.namespace:
            parent = None
        if chunk.depth == 1 or parent is not None:
            if chunk.depth != (parent.depth if parent else 0) + 1:
                _count_corrupt(counters, "depth")
                continue
            seed = chunk.namespace if parent is None else parent.path_digest
            if hashlib.sha256(seed + chunk.tokens).digest() != chunk.path_digest:
                _count_corrupt(counters, "path")
                continue
        else:
            strays.append(chunk)
        chunks[chunk.key] = chunk
        parents[chunk.key] = None if parent is None else parent.key
    # 2. The others continue a shared scope's path, or their parent is missing.
    for digest in {stray.namespace for stray in strays}:
        mine = [stray for stray in strays if stray.namespace == digest]
        parents.update(_graft(digest, mine, chunks, parents, names))
    return chunks, parents


def _graft(
    digest: bytes,
    strays: list[_Chunk],
    chunks: dict[bytes, _Chunk],
    parents: dict[bytes, bytes | None],
    names: dict[bytes, dict[str, str | int]],
) -> dict[bytes, bytes | None]:
    """Parents, in shared scopes of the same model, of chunks of the namespace `digest`.

    If several readable scopes hold the same tokens, the parent is in the first of them by name.
    """
    # 1. Parents' keys that are looked for, in the namespace `digest`.
    wanted: dict[bytes, list[_Chunk]] = {}
    for stray in strays:
        wanted.setdefault(stray.parent_key, []).append(stray)
    readable = {chunk.namespace: _reading_rank(digest, chunk.namespace, names) for chunk in chunks.values()}
    # 2. Key and path digest that every chunk of a readable path would have in that namespace.
    chains: dict[bytes, tuple[bytes, bytes]] = {}
    found: dict[bytes, tuple[tuple[bool, str, bytes], bytes]] = {}
    for chunk in chunks.values():
        rank = readable[chunk.namespace]
        above = parents[chunk.key]
        if rank is None or (above is None and chunk.depth > 1):
            continue
        chain = (digest, digest) if above is None else chains.get(above)
        if chain is None:
            continue
        key = xxh3_128_digest(chain[0] + chunk.tokens)
        path = hashlib.sha256(chain[1] + chunk.tokens).digest()
        chains[chunk.key] = key, path
        # 3. A stray chunk is its child if depth and path digest follow from it.
        for stray in wanted.get(key, ()):
            is_next = stray.depth == chunk.depth + 1
            if is_next and hashlib.sha256(path + stray.tokens).digest() == stray.path_digest:
                found[stray.key] = min(found.get(stray.key, (rank, chunk.key)), (rank, chunk.key))
    return {key: parent for key, (_, parent) in found.items()}


def _reading_rank(
    digest: bytes, other: bytes, names: dict[bytes, dict[str, str | int]]
) -> tuple[bool, str, bytes] | None:
    """Sort key for readable namespaces, the most likely first; None if `other` cannot be read."""
    if other == digest or not _same_model(names.get(digest), names.get(other)):
        return None
    scope = str(names[other]["scope"]) if other in names else ""
    # Nobody else may read a tenant's own scope.
    return None if scope.startswith("tenant:") else (scope == "", scope, other)


def _same_model(one: dict[str, str | int] | None, other: dict[str, str | int] | None) -> bool:
    if one is None or other is None:
        return True
    return all(one[name] == other[name] for name in one if name not in ("scope", "salt"))


def _nodes(
    chunks: dict[bytes, _Chunk], parents: dict[bytes, bytes | None], digests: list[bytes], tier: str
) -> list[NodeView]:
    """Depth first, children in token order, a parent's own namespace before grafts; orphans as tops."""
    number = {digest: i for i, digest in enumerate(digests)}
    below: dict[bytes | None, list[_Chunk]] = {}
    for chunk in chunks.values():
        below.setdefault(parents[chunk.key], []).append(chunk)
    tops = sorted(
        below.get(None, ()), key=lambda chunk: (number[chunk.namespace], chunk.depth > 1, chunk.tokens)
    )
    ids: dict[bytes, int] = {}
    nodes: list[NodeView] = []
    stack = tops[::-1]
    while stack:
        chunk = stack.pop()
        ids[chunk.key] = len(nodes)
        above = parents[chunk.key]
        nodes.append(
            NodeView(
                id=len(nodes),
                parent=None if above is None else ids[above],
                namespace=number[chunk.namespace],
                key=chunk.key.hex(),
                depth=chunk.depth,
                tokens=np.frombuffer(chunk.tokens, "<i4").tolist(),
                readers=0,
                hits=0,
                tiers={tier: chunk.size_bytes},
                pin=None,
                pending=False,
                created_at=float(chunk.created_at),
                last_used_at=float(chunk.created_at),
            )
        )
        children = below.get(chunk.key, [])
        children.sort(key=lambda child: (number[child.namespace], child.tokens))
        # This sort is stable: only children of the parent's own namespace move to the front.
        children.sort(key=lambda child: child.namespace != chunk.namespace)
        stack.extend(reversed(children))
    return nodes


def _unknown_fields(chunk_tokens: int) -> dict[str, str | int]:
    return {f.name: chunk_tokens if f.name == "chunk_tokens" else UNKNOWN for f in fields(Namespace)}
