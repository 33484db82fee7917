"""`kvtrie stats`: figures that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

from kvtrie.api.inspection.snapshot_stats import snapshot_stats
from kvtrie.prefix_tree.tombstones import RING_BYTES, TOMBSTONE_BYTES

A, B, C = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]


def test_figures(scene, kvtrie):
    root = scene.root()
    scene.put(root, [*A, *B])
    scene.put(root, [*A, *C])
    scene.put(scene.root("shared:tools"), A, tier=1)
    scene.hit(root, [*A, *B], 3)
    scene.tree.tiers[0].reserve("tenant:acme", 500)
    tokens = b"".join(t.to_bytes(4, "little") for t in [*A, *B, *C])
    scene.tree.claim(scene.tree.match(root, tokens), tokens)
    stats = snapshot_stats(scene.snapshot())
    assert (stats.nodes, stats.pending_nodes, stats.paths, stats.hits) == (5, 1, 3, 3)
    assert (stats.deepest_chunks, stats.deepest_tokens) == (2, 8)
    # A and B, A and C, and A of the other scope; the pending C is not stored yet.
    assert (stats.unique_tokens, stats.path_tokens) == (16, 8 + 8 + 4)
    assert stats.scopes == ["shared:tools", "tenant:acme"]
    assert stats.counters["requests"] == 3
    out = kvtrie("stats", scene.file()).out
    assert "16; the paths add up to 20 (1.25x shared)" in out
    device = next(line for line in out.splitlines() if line.startswith("device"))
    assert device.split() == ["device", "all", "9.5", "MiB", "2.9", "KiB", "500", "B", "9.5", "MiB", "3"]


def test_tombstones_are_bytes(scene, kvtrie):
    scene.put(scene.root(), [*A, *B])
    scene.tree.evict(0, 2000, "making room")
    of_one_scope = 2 * TOMBSTONE_BYTES + RING_BYTES
    document = kvtrie("stats", scene.file(), "--format", "json").document
    assert (document["tombstones"], document["tombstone_bytes"]) == (2, of_one_scope)
    assert document["counters"]["evictions.making room"] == 2
    assert document["counters"]["tombstone_bytes"] == of_one_scope
    assert document["format"] == "kvtrie-stats"


def test_an_empty_tree(scene, kvtrie):
    ran = kvtrie("stats", scene.file())
    assert ran.code == 0
    assert "tokens stored  0; the paths add up to 0\n" in ran.out


def test_what_if(scene, kvtrie, tmp_path):
    scene.put(scene.root(), [*A, *B])
    snapshot = json.loads(Path(scene.file()).read_text())
    snapshot["counters"] |= {"what_if.100.tenant:acme": 0.62, "what_if.200.tenant:acme": 0.709}
    path = tmp_path / "with.json"
    path.write_text(json.dumps(snapshot))
    out = kvtrie("stats", str(path), "--what-if").out
    assert "tenant:acme: twice the memory: 62% -> 71%" in out
    assert ["tenant:acme", "62.0%", "70.9%"] in [line.split() for line in out.splitlines()]
    # Estimates are no counters.
    assert "what_if" not in kvtrie("stats", str(path)).out
    document = kvtrie("stats", str(path), "--format", "json").document
    assert document["what_if"] == {"tenant:acme": {"100": 0.62, "200": 0.709}}
    assert not any(name.startswith("what_if") for name in document["counters"])


def test_nothing_to_tell_of_what_if(scene, kvtrie):
    ran = kvtrie("stats", scene.file(), "--what-if")
    assert ran.code == 0
    assert ran.out.startswith("nothing to tell yet")
