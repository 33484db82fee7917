"""The host tier: encoded records in this process's memory, as one prefix tree with one tier.

A chunk has two keys here.
    client key ... chained from the client's namespace digest; records carry it, and clients look chunks up by it
    tree key ..... chained from the digest of a namespace that this tier makes of the scope and the client's
                   namespace, so two tenants that send the same namespace and tokens share no entry of the index

All tenants' chunks are leaves and inner nodes of one tree: the memory is not partitioned. The policy (LRU by
default) orders all leaves together; shares and quotas of scopes work on top of it.

The tier's books count all of its memory:
    used ...... len(record) of every chunk, charged to its scope; leaves are evicted in the order of the policy
    pending ... namespace records, and NAMESPACE_BYTES for each namespace

A namespace without chunks is kept while there is room, so that a client need not send its record again. Where room
is short, namespaces without chunks are dropped first, in the order in which they lost their last chunk.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from kvtrie.api.eviction import OVER_QUOTA, Eviction
from kvtrie.api.tiers.homes import NAMESPACE_BYTES, EmptyHomes, HeldRecord, Home
from kvtrie.api.tiers.record_link import RecordLink
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.prefix_tree import Evicted, Namespace, Node, PrefixTree
from kvtrie.prefix_tree.errors import RecordError, StoreFull
from kvtrie.prefix_tree.keys import TOKEN_BYTES
from kvtrie.prefix_tree.tombstones import Tombstone, Tombstones
from kvtrie.store import Record, decode_namespace

HOST = 0
"""The tree's only tier."""
TYPICAL_RECORD_BYTES = 1 << 20
"""Assumed size of a record, for policies that must know how many chunks the tier can hold."""
LONGEST_NAMESPACE_RECORD = 1 << 16


class HostTier:
    """Records of all scopes. Thread-safe: every method takes `lock`, for about the time of a lookup.

    Args:
        capacity_bytes: size of the tier.
        chunk_tokens: tokens of every chunk; records of other chunks are rejected.
        counters: counts `evictions.<reason>` and `forgotten_namespaces`.
        max_namespaces: most namespaces with chunks that one scope may have.
        eviction: which chunks are evicted when the tier is full; LRU when left out.

    Raises:
        InputError: `chunk_tokens` below one.
    """

    def __init__(
        self,
        capacity_bytes: int,
        chunk_tokens: int,
        counters: ScopeCounters,
        *,
        max_namespaces: int = 256,
        eviction: Eviction | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        self._eviction = eviction or Eviction()
        self.tier = self._eviction.tier("host", capacity_bytes, TYPICAL_RECORD_BYTES)
        # Tombstones have client keys, so they are kept here and not in the tree, which has tree keys.
        self.tree = PrefixTree(chunk_tokens, [self.tier], clock=clock, tombstones_per_scope=0)
        self.tombstones = Tombstones(per_scope=1024)
        self._counters = counters
        self._max_namespaces = max_namespaces
        self._homes: dict[tuple[str, bytes], Home] = {}
        self._homes_of: Counter[str] = Counter()
        self._empty = EmptyHomes()

    # ---- reading

    def match(self, scope: str, namespace: bytes, tokens: bytes) -> int:
        """Number of whole chunks of a prompt (int32le) that are held. Its last token, to be computed, is left out.

        The path counts as used now, and is not evicted next. It counts no hit.
        """
        with self.lock:
            home = self._homes.get((scope, namespace))
            if home is None:
                return 0
            path = self.tree.match(home.root, tokens[:-TOKEN_BYTES]).path
            if path:
                self.tree.release(self.tree.lease_node(path[-1]))
            return len(path)

    def get(self, scope: str, namespace: bytes, keys: Sequence[bytes]) -> list[HeldRecord]:
        """Records of the longest held prefix of `keys`. Each key must be a child of the one before; the first may
        be at any depth."""
        with self.lock:
            home = self._homes.get((scope, namespace))
            if home is None:
                return []
            path: list[Node] = []
            for key in keys:
                node = home.by_key.get(key)
                if node is None or (path and node.parent is not path[-1]):
                    break
                path.append(node)
            if path:
                path[-1].hits += 1
                self.tree.release(self.tree.lease_node(path[-1], uses=1))
            return [_held(node) for node in path]

    def keys_above(self, scope: str, namespace: bytes, key: bytes) -> list[bytes]:
        """Client keys of the chunks above a held one, from the first; empty if `key` is not held."""
        with self.lock:
            home = self._homes.get((scope, namespace))
            node = None if home is None else home.by_key.get(key)
            return [] if node is None else [_held(above).link.key for above in node.path()[:-1]]

    def chunks_of(self, scopes: Collection[str] | None) -> dict[str, int]:
        """Number of chunks of each of `scopes`; of every scope for None."""
        with self.lock:
            chunks: Counter[str] = Counter()
            for home in self.homes(scopes):
                chunks[home.scope] += len(home.by_key)
            return dict(chunks)

    def link(self, scope: str, namespace: bytes, key: bytes) -> RecordLink | None:
        """The link (depth, path digest, shape) of a held chunk; None if it is not held."""
        with self.lock:
            home = self._homes.get((scope, namespace))
            node = None if home is None else home.by_key.get(key)
            return None if node is None else _held(node).link

    def is_named(self, scope: str, namespace: bytes) -> bool:
        """Whether the namespace's record is held."""
        with self.lock:
            home = self._homes.get((scope, namespace))
            return home is not None and home.record is not None

    def homes(self, scopes: Collection[str] | None) -> list[Home]:
        """Namespaces of `scopes` (all for None), oldest first. Hold `lock` while calling it and using them."""
        return [home for home in self._homes.values() if scopes is None or home.scope in scopes]

    # ---- growing

    def admit(self, scope: str, record: Record, data: bytes) -> bool:
        """Stores an intact record, with `data` as its bytes; False if it is held already.

        Evicts leaves, in the order of the policy, if there is no room.

        Raises:
            RecordError: its parent is not held, or it contradicts its parent or the record held under its key.
            StoreFull: it does not fit, or the scope has too many namespaces with chunks.
        """
        with self.lock:
            if record.depth == 0:
                return self._name(scope, record, data)
            return self._insert(scope, record, data)

    def _insert(self, scope: str, record: Record, data: bytes) -> bool:
        home = self._homes.get((scope, record.namespace))
        above: Node | None = None
        link = RecordLink.root(record.namespace)
        if record.depth > 1:
            above = None if home is None else home.by_key.get(record.parent_key)
            if above is None:
                raise RecordError("parent", f"the parent {record.parent_key.hex()} is not held")
            link = _held(above).link
        link = link.follow(record, self.tree.chunk_tokens)
        if home is not None and (stored := home.by_key.get(record.key)) is not None:
            if stored.parent is not (above or home.root) or stored.tokens != record.tokens:
                raise RecordError("key", f"{record.key.hex()} is the key of other tokens here")
            return False
        home = home or self._open(scope, record.namespace, extra_bytes=len(data))
        self._make_room(scope, len(data), home, above)
        parent = above or home.root
        tree_key = self.tree.next_key(parent.key, record.tokens)
        handle = HeldRecord(home, link, data)
        node = self.tree.insert(parent, home.root, tree_key, record.tokens, HOST, handle, len(data))
        assert _held(node) is handle, "a chunk that is not in the index was in the tree"
        home.by_key[record.key] = node
        self._empty.discard(home)
        self.tombstones.discard(scope, record.key)
        return True

    def _name(self, scope: str, record: Record, data: bytes) -> bool:
        if len(data) > LONGEST_NAMESPACE_RECORD:
            raise RecordError("length", f"namespace record of {len(data)} bytes")
        fields = decode_namespace(record)
        if fields["chunk_tokens"] != self.tree.chunk_tokens:
            kept = self.tree.chunk_tokens
            raise RecordError(
                "shape", f"chunks of {fields['chunk_tokens']} tokens, this sidecar keeps {kept}"
            )
        home = self._homes.get((scope, record.namespace))
        if home is not None and home.record is not None:
            return False
        home = home or self._open(scope, record.namespace, extra_bytes=len(data))
        self._make_room(scope, len(data), home)
        self.tier.reserve(scope, len(data))
        # The scope in a client's record is the client's name for it; a dump shows the scope that holds the chunks.
        home.record, home.fields = data, {**fields, "scope": scope}
        return True

    def _open(self, scope: str, namespace: bytes, extra_bytes: int) -> Home:
        """A new namespace; makes room for it and for its first record of `extra_bytes`."""
        if self._homes_of[scope] >= self._max_namespaces and not self._forget_one(scope=scope):
            raise StoreFull(
                f"scope {scope} has chunks in {self._max_namespaces} namespaces, which is the most it may"
            )
        self._make_room(scope, NAMESPACE_BYTES + extra_bytes)
        self.tier.reserve(scope, NAMESPACE_BYTES)
        identity = Namespace(scope=scope, salt=namespace.hex(), chunk_tokens=self.tree.chunk_tokens)
        shown = Namespace(scope=scope, chunk_tokens=self.tree.chunk_tokens).public_fields()
        home = Home(scope, namespace, self.tree.root(identity), fields=shown)
        self._homes[scope, namespace] = home
        self._homes_of[scope] += 1
        self._empty.add(home)
        return home

    # ---- shrinking

    def _make_room(
        self, scope: str, size_bytes: int, home: Home | None = None, keep: Node | None = None
    ) -> None:
        """Forgets empty namespaces and evicts chunks until `size_bytes` of `scope` fit.

        Keeps `home` and the path to `keep`; changes nothing if even an empty tier would have no room beside them.
        """
        # 1. Nothing to do, or nothing that would help.
        tier = self.tier
        if size_bytes <= tier.free_bytes and not tier.over_quota_bytes(scope, size_bytes):
            return
        spared = 0 if home is None else home.own_bytes
        if keep is not None:
            spared += sum(len(_held(node).data) for node in keep.path())
        if size_bytes + spared > tier.capacity_bytes:
            raise StoreFull(
                f"{size_bytes} bytes, beside {spared} bytes of the path above, do not fit the host tier"
            )
        lease = None if keep is None else self.tree.lease_node(keep)
        try:
            # 2. Below the scope's own quota first, from its own chunks.
            while tier.over_quota_bytes(scope, size_bytes):
                if not self._forget_one(home, scope) and not self._evict_one(OVER_QUOTA, scope):
                    break
            # 3. Then into the tier, from anybody's chunks.
            while size_bytes > tier.free_bytes:
                if not self._forget_one(home) and not self._evict_one(self._eviction.reason):
                    raise StoreFull(f"{size_bytes} bytes do not fit beside chunks that may not be evicted")
        finally:
            if lease is not None:
                self.tree.release(lease)

    def _evict_one(self, reason: str, scope: str | None = None) -> bool:
        """Evicts one leaf, which may leave its namespace without chunks; False if there is no leaf to evict."""
        evicted = self.tree.evict(HOST, 1, reason, scope=scope)
        self._forget(evicted, reason)
        return bool(evicted)

    def _forget_one(self, spared: Home | None = None, scope: str | None = None) -> bool:
        """Forgets a namespace without chunks, of one scope or of any; False if there is none except `spared`."""
        home = self._empty.oldest(spared, scope)
        if home is None:
            return False
        self._empty.discard(home)
        del self._homes[home.scope, home.namespace]
        self._homes_of[home.scope] -= 1
        if not self._homes_of[home.scope]:
            del self._homes_of[home.scope]
        self.tier.unreserve(home.scope, home.own_bytes)
        self._counters.add(home.scope, "forgotten_namespaces")
        return True

    def _forget(self, evicted: list[Evicted], reason: str) -> None:
        for gone in evicted:
            handle = gone.handle
            assert isinstance(handle, HeldRecord)
            key, scope = handle.link.key, handle.home.scope
            del handle.home.by_key[key]
            if not handle.home.by_key:
                self._empty.add(handle.home)
            stone = Tombstone(key, handle.link.depth, self.tier.name, self.tree.clock(), reason)
            self.tombstones.add(scope, stone)
            self._counters.add(scope, f"evictions.{reason}")


def _held(node: Node) -> HeldRecord:
    residence = node.at[HOST]
    assert residence is not None
    assert isinstance(residence.handle, HeldRecord)
    return residence.handle
