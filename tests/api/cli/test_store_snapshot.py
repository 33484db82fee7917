"""The tree rebuilt from records alone, compared with the tree the records were written from."""

from __future__ import annotations

import pytest

from kvtrie.api.inspection.explain import explain
from kvtrie.api.inspection.explanation import Question
from kvtrie.api.inspection.store_snapshot import UNKNOWN, store_snapshot
from kvtrie.prefix_tree import ChunkShape, Snapshot
from kvtrie.prefix_tree.keys import KEY_BYTES, chunk_keys, path_digests
from kvtrie.store import MemoryStore, Record, Store, encode_namespace_record, encode_record, open_store

SHAPE = ChunkShape(layers=1, kv_heads=1, chunk_tokens=4, key_dim=1, value_dim=1, dtype="float32")
A, B, C, D = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]
WRITTEN = 1_700_000_000
STORE_KEY = b"a key of 16 byte"


def write_tree(scene, store: Store, store_key: bytes | None = None) -> dict[bytes, bytes]:
    """Every resident chunk of the scene and every namespace, as an engine writes them."""
    items: dict[bytes, bytes] = {}
    for root in scene.tree.roots():
        named = encode_namespace_record(root.namespace, created_at_seconds=WRITTEN, store_key=store_key)
        items[root.key[:KEY_BYTES]] = named
    for node in scene.tree.walk():
        tokens = b"".join(above.tokens for above in node.path())
        keys = [node.root.key, *chunk_keys(node.root.key, tokens, 4)]
        assert keys[-1] == node.key
        record = Record(
            namespace=node.root.key,
            key=node.key,
            parent_key=keys[-2][:KEY_BYTES],
            path_digest=path_digests(node.root.key, tokens, 4)[-1],
            depth=node.depth,
            codec=1,
            shape=SHAPE,
            tokens=node.tokens,
            payload=bytes(SHAPE.chunk_bytes),
            created_at_seconds=WRITTEN,
        )
        items[node.key] = encode_record(record, store_key)
    store.put_many(list(items.items()))
    return items


@pytest.fixture
def forest(scene):
    """Two tenants, a shared scope, and a tenant's continuation of it."""
    acme, bolt, shared = scene.root(), scene.root("tenant:bolt", salt="s"), scene.root("shared:tools")
    scene.put(shared, [*A, *B])
    scene.put(acme, [*A, *B, *C, *D], [shared])
    scene.put(acme, [*D, *C])
    scene.put(acme, [*D, *A])
    scene.put(bolt, [*A, *B, *C])
    return scene


def picture(snapshot: Snapshot) -> set[tuple[str, str | None, int, tuple[int, ...], str]]:
    """What a rebuilt tree must share with the one it was written from."""
    by_id = {node.id: node for node in snapshot.nodes}
    return {
        (
            node.key,
            None if node.parent is None else by_id[node.parent].key,
            node.depth,
            tuple(node.tokens),
            snapshot.namespaces[node.namespace].digest,
        )
        for node in snapshot.nodes
    }


def test_it_is_the_tree_that_was_written(forest):
    store = MemoryStore()
    items = write_tree(forest, store)
    rebuilt = store_snapshot(store, "memory")
    original = forest.snapshot()
    assert picture(rebuilt) == picture(original)
    assert len(rebuilt.nodes) == len(original.nodes) == 10
    assert {n.digest: n.fields for n in rebuilt.namespaces} == {
        n.digest: n.fields for n in original.namespaces
    }
    assert rebuilt.counters == {
        "store.records": len(items),
        "store.orphans": 0,
        "store.corrupt": 0,
        "store.unnamed_namespaces": 0,
    }
    assert {node.last_used_at for node in rebuilt.nodes} == {WRITTEN}
    sizes = {bytes.fromhex(node.key): node.tiers["memory"] for node in rebuilt.nodes}
    assert all(size == len(items[key]) for key, size in sizes.items())
    assert rebuilt.tiers[0].used_bytes == sum(sizes.values())
    positions = {node.id: i for i, node in enumerate(rebuilt.nodes)}
    assert all(node.parent is None or positions[node.parent] < i for i, node in enumerate(rebuilt.nodes))
    assert Snapshot.from_json(rebuilt.to_json()) == rebuilt


def test_explain_reads_it(forest):
    store = MemoryStore()
    write_tree(forest, store)
    found = explain(store_snapshot(store, "memory"), [*A, *B, *C, *D, 1], Question("tenant:acme"))
    assert (found.cached_tokens, found.through) == (16, ["shared:tools", "tenant:acme"])


def test_a_missing_parent_leaves_orphans_and_a_gap(scene, kvtrie):
    scene.put(scene.root(), [*A, *B, *C, *D])
    store = MemoryStore()
    write_tree(scene, store)
    lost = list(scene.tree.walk())[1]
    store.delete_many([lost.key])
    rebuilt = store_snapshot(store, "memory")
    assert [(node.depth, node.parent) for node in rebuilt.nodes] == [(1, None), (3, None), (4, 1)]
    assert rebuilt.counters["store.orphans"] == 1
    found = explain(rebuilt, [*A, *B, *C, *D, 1], Question("tenant:acme"))
    assert (found.verdict, found.cached_tokens) == ("gap", 4)
    assert found.gap is not None
    assert (found.gap.missing_chunk, found.gap.stored_chunks) == (2, [3, 4])
    # The tokens of chunks 3 and 4, which are used again once chunk 2 is stored.
    assert [(advice.action, advice.saves_tokens) for advice in found.advice] == [("refill", 8)]


def test_corrupt_records_are_counted_and_left_out(forest):
    store = MemoryStore()
    items = write_tree(forest, store)
    broken, truncated, misplaced = [node.key for node in forest.tree.walk() if not node.all_children()][:3]
    flipped = bytearray(items[broken])
    flipped[-20] ^= 1
    store.put_many([(broken, bytes(flipped)), (truncated, items[truncated][:50]), (misplaced, items[broken])])
    store.put_many([(b"somebody else's", b"bytes")])
    rebuilt = store_snapshot(store, "memory")
    assert len(rebuilt.nodes) == 10 - 3
    assert rebuilt.counters["store.corrupt"] == 4
    assert rebuilt.counters["store.corrupt.checksum"] == 1
    assert rebuilt.counters["store.corrupt.truncated"] == 2
    assert rebuilt.counters["store.corrupt.key"] == 1


def test_a_record_that_lies_about_its_path_is_left_out(scene):
    scene.put(scene.root(), A)
    root, node = scene.root(), next(scene.tree.walk())
    forged = Record(
        root.key, node.key, root.key[:16], bytes(32), 1, 1, SHAPE, node.tokens, bytes(32), WRITTEN
    )
    store = MemoryStore()
    store.put_many([(node.key, encode_record(forged))])
    rebuilt = store_snapshot(store, "memory")
    assert rebuilt.nodes == []
    assert rebuilt.counters["store.corrupt.path"] == 1


def test_a_namespace_without_a_record_is_nameless(scene):
    root = scene.root()
    scene.put(root, [*A, *B])
    store = MemoryStore()
    write_tree(scene, store)
    store.delete_many([root.key[:KEY_BYTES]])
    rebuilt = store_snapshot(store, "memory")
    assert [n.scope for n in rebuilt.namespaces] == [UNKNOWN]
    assert rebuilt.namespaces[0].fields["chunk_tokens"] == 4
    assert len(rebuilt.nodes) == 2


def test_sealed_records_need_the_key(scene):
    scene.put(scene.root(), A)
    store = MemoryStore()
    write_tree(scene, store, STORE_KEY)
    assert len(store_snapshot(store, "memory", STORE_KEY).nodes) == 1
    assert store_snapshot(store, "memory").counters["store.corrupt.checksum"] == 2


def test_redis_without_its_writer(forest, redis_server, kvtrie, monkeypatch):
    store = open_store(redis_server.url)
    write_tree(forest, store, STORE_KEY)
    store.close()
    monkeypatch.setenv("KVTRIE_STORE_KEY", STORE_KEY.decode())
    rebuilt = Snapshot.from_json(kvtrie("dump", "--store", redis_server.url, "--format", "json").out)
    assert picture(rebuilt) == picture(forest.snapshot())
    assert rebuilt.tiers[0].name == "redis"
    out = kvtrie("dump", "--store", redis_server.url, "--expand").out
    assert "continued by tenant:acme" in out
    asked = ["--store", redis_server.url, "--scope", "acme", "--tokens", "13,14,15,16,9,10,99"]
    assert kvtrie("explain", *asked, "--format", "json").document["cached_tokens"] == 6
    assert kvtrie("doctor", "--store", redis_server.url).code == 0
    monkeypatch.setenv("KVTRIE_STORE_KEY", "another key of 16")
    assert "13 records not usable: 13 checksum" in kvtrie("dump", "--store", redis_server.url).out
    for unusable in ("short", ""):
        monkeypatch.setenv("KVTRIE_STORE_KEY", unusable)
        assert kvtrie("dump", "--store", redis_server.url).code == 2
