"""Tombstones: a bounded memory, per scope, of what was evicted."""

from __future__ import annotations

from kvtrie.prefix_tree.tombstones import RING_BYTES, TOMBSTONE_BYTES, Tombstone, Tombstones

DEVICE = 0


def stone(name: bytes, reason: str = "test") -> Tombstone:
    return Tombstone(name, 1, "device", 0.0, reason)


def test_an_eviction_is_remembered_with_when_and_why(forest) -> None:
    _, child = forest.store("a", [1, 2, 3, 4])
    forest.now = 1234.0
    forest.tree.evict(DEVICE, 1, "cold")
    assert forest.tree.tombstones.find("a", child.key) == Tombstone(child.key, 2, "device", 1234.0, "cold")
    assert forest.tree.tombstones.find("b", child.key) is None
    assert list(forest.tree.tombstones) == [("a", Tombstone(child.key, 2, "device", 1234.0, "cold"))]


def test_a_chunk_cached_again_has_none(forest) -> None:
    parent, child = forest.store("a", [1, 2, 3, 4])
    forest.evict(DEVICE, 2)
    assert len(forest.tree.tombstones) == 2
    forest.store("a", [1, 2])
    assert forest.tree.tombstones.find("a", parent.key) is None
    assert forest.tree.tombstones.find("a", child.key) is not None


def test_each_scope_remembers_so_many_and_forgets_its_oldest(make_forest) -> None:
    forest = make_forest(tombstones_per_scope=2)
    mine = [forest.store("a", [n, n])[0] for n in (1, 2, 3)]
    forest.evict(DEVICE, 3)
    (theirs,) = forest.store("b", [1, 1])
    forest.evict(DEVICE, 1)
    found = [forest.tree.tombstones.find("a", node.key) is not None for node in mine]
    assert found == [False, True, True]
    assert forest.tree.tombstones.find("b", theirs.key) is not None
    assert len(forest.tree.tombstones) == 3
    assert forest.tree.tombstones.size_bytes == 3 * TOMBSTONE_BYTES + 2 * RING_BYTES


def test_none_at_all_if_so_configured(make_forest) -> None:
    forest = make_forest(tombstones_per_scope=0)
    forest.store("a", [1, 2])
    forest.evict(DEVICE, 1)
    assert len(forest.tree.tombstones) == 0
    assert not forest.tree.tombstones


def test_the_newest_of_one_key_counts_and_is_youngest() -> None:
    stones = Tombstones(2)
    for name, reason in ((b"x", "first"), (b"y", "first"), (b"x", "second"), (b"z", "first")):
        stones.add("a", stone(name, reason))
    assert stones.find("a", b"y") is None
    found = stones.find("a", b"x")
    assert found is not None
    assert found.reason == "second"
    stones.discard("a", b"x")
    stones.discard("a", b"x")
    stones.discard("nobody", b"x")
    assert [s.key for _, s in stones] == [b"z"]


def test_all_scopes_together_have_a_bound(make_forest) -> None:
    """A new tenant's evictions take from the scope that has evicted nothing for longest, its oldest first."""
    bound = 3 * RING_BYTES + 6 * TOMBSTONE_BYTES
    stones = Tombstones(3, bound)
    for scope, name in (("a", b"1"), ("b", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"2"), ("b", b"3")):
        stones.add(scope, stone(name))
    stones.add("a", stone(b"4"))
    kept = [("b", [stone(b"1"), stone(b"2"), stone(b"3")]), ("a", [stone(b"2"), stone(b"3"), stone(b"4")])]
    assert stones.by_scope() == kept
    stones.add("c", stone(b"1"))
    assert stones.by_scope() == [("b", [stone(b"2"), stone(b"3")]), kept[1], ("c", [stone(b"1")])]
    assert (len(stones), stones.size_bytes) == (6, bound)
    stones.add("c", stone(b"2"))
    stones.add("c", stone(b"3"))
    assert stones.by_scope() == [kept[1], ("c", [stone(b"1"), stone(b"2"), stone(b"3")])]
    assert (len(stones), stones.size_bytes) == (6, bound - RING_BYTES)


def test_a_scope_without_tombstones_leaves_nothing(forest) -> None:
    forest.store("a", [1, 2])
    forest.evict(DEVICE, 1)
    assert forest.tree.tombstones
    forest.store("a", [1, 2])
    assert not forest.tree.tombstones
    assert forest.tree.tombstones.size_bytes == forest.tree.figures()["tombstone_bytes"] == 0


def test_ten_thousand_scopes_stay_within_the_bound() -> None:
    stones = Tombstones(1024, 1 << 20)
    for number in range(10_000):
        for name in range(3):
            stones.add(f"tenant:{number}", stone(b"%d" % name))
    assert stones.size_bytes <= 1 << 20
    assert len(stones) == sum(len(ring) for _, ring in stones.by_scope())
    assert stones.find("tenant:9999", b"2") is not None
    assert stones.find("tenant:0", b"2") is None
