"""Loads a prompt's chunks from a lower tier to the device, before the rest is computed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from kvtrie.api.engine.kv_memory import DEVICE, KvMemory
from kvtrie.api.engine.sequence_kv import into_tree
from kvtrie.prefix_tree import Lease, Match, Node, Root
from kvtrie.prefix_tree.keys import TOKEN_BYTES, path_digests
from kvtrie.store import Record

BATCH_CHUNKS = 16
"""Chunks asked for at once: enough to hide round trips, few enough to bound the bytes in flight."""


def load_missing(memory: KvMemory, root: Root, readable: Iterable[Root], tokens: bytes) -> Match:
    """Matches `tokens`, loads what the lower tier holds beyond the match, and matches again.

    Tried in the tenant's own namespace first, then in each shared scope it reads. Loaded chunks enter the
    tree like computed ones. With no lower tier this is `PrefixTree.match`.
    """
    readable = list(readable)
    match = memory.tree.match(root, tokens, readable)
    if memory.records is None or match.awaits is not None:
        return match
    chunk_bytes = memory.shape.chunk_tokens * TOKEN_BYTES
    if len(tokens) // chunk_bytes == len(match.path):
        return match
    if _load_path(memory, root, match, tokens):
        return memory.tree.match(root, tokens, readable)
    for shared in readable:
        there = memory.tree.match(shared, tokens)
        if there.awaits is None and _load_path(memory, shared, there, tokens):
            return memory.tree.match(root, tokens, readable)
    return match


def _load_path(memory: KvMemory, root: Root, match: Match, tokens: bytes) -> bool:
    """Loads chunks beyond `match` into `root`'s namespace; returns whether any were loaded."""
    assert memory.records is not None
    tree, chunk_tokens = memory.tree, memory.shape.chunk_tokens
    token_bytes_per_chunk = chunk_tokens * TOKEN_BYTES
    digests = path_digests(root.key, tokens, chunk_tokens)
    chain: list[tuple[bytes, bytes, bytes]] = []
    key = match.chain_key
    for place in range(len(match.path), len(digests)):
        chunk = tokens[place * token_bytes_per_chunk : (place + 1) * token_bytes_per_chunk]
        key = tree.next_key(key, chunk)
        chain.append((key, digests[place], chunk))
    lease = tree.lease_node(match.node)
    loaded = 0
    try:
        while loaded < len(chain):
            batch = chain[loaded : loaded + BATCH_CHUNKS]
            parent_key = chain[loaded - 1][0] if loaded else match.chain_key
            records = memory.records.load(root, parent_key, len(match.path) + loaded + 1, batch)
            for record in records:
                slots = memory.take(root.scope, 1, after=memory.last_slot(lease.node))
                if slots is None:
                    return loaded > 0
                try:
                    memory.records.restore(record, slots[0])
                    node = into_tree(
                        memory, root.scope, partial(_insert, memory, lease, root, record, slots[0])
                    )
                except BaseException:
                    memory.give(root.scope, slots)
                    raise
                tree.extend(lease, node)
                loaded += 1
            if len(records) < len(batch):
                break
    finally:
        tree.release(lease)
    return loaded > 0


def _insert(memory: KvMemory, lease: Lease, root: Root, record: Record, slot: int) -> Node:
    size = memory.shape.chunk_bytes
    return memory.tree.insert(lease.node, root, record.key, record.tokens, DEVICE, slot, size)
