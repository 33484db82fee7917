"""Roots: kept while anything hangs below them, a few more for a while, and never two of one namespace."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from kvtrie.prefix_tree import check
from kvtrie.prefix_tree.roots import ROOT_BYTES

DEVICE = 0
NONE_IDLE = 2 * (ROOT_BYTES - 1)
ONE_IDLE = 2 * ROOT_BYTES


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever is freed is freed by its last reference."""
    gc.disable()
    yield
    gc.enable()


def kept(forest) -> list[str]:
    return [root.scope for root in forest.tree.roots()]


@pytest.mark.usefixtures("no_collector")
def test_a_root_without_nodes_is_freed_with_its_last_holder(make_forest) -> None:
    forest = make_forest(remembered_bytes=NONE_IDLE, tombstones_per_scope=0)
    seen = weakref.ref(forest.root("a"))
    assert seen() is None
    forest.store("a", [1, 2, 3, 4])
    seen = weakref.ref(forest.root("a"))
    assert kept(forest) == ["a"]
    assert len(forest.evict(DEVICE, 1)) == 1
    assert seen() is forest.root("a")
    assert len(forest.evict(DEVICE, 1)) == 1
    assert seen() is None
    assert kept(forest) == []
    check(forest.tree)


def test_the_last_few_that_hold_nothing_are_remembered(make_forest) -> None:
    forest = make_forest(remembered_bytes=2 * 3 * ROOT_BYTES)
    for scope in "abcd":
        forest.store(scope, [1, 2])
    assert kept(forest) == ["a", "b", "c", "d"]
    forest.evict(DEVICE, 4)
    assert kept(forest) == ["b", "c", "d"]
    forest.root("b")
    forest.root("e")
    assert kept(forest) == ["b", "d", "e"], "the one asked for longest ago is dropped"
    assert forest.tree.figures()["namespaces"] == 3
    assert forest.tree.figures()["namespace_bytes"] == 3 * ROOT_BYTES
    check(forest.tree)


def test_however_many_tenants_come_and_leave_memory_is_bounded(make_forest) -> None:
    forest = make_forest(remembered_bytes=8192, tombstones_per_scope=10)
    for tenant in range(300):
        forest.store(f"tenant:{tenant}", [1, 2, 3, 4])
        forest.evict(DEVICE, 2)
    figures = forest.tree.figures()
    assert figures["namespaces"] == 4
    assert figures["namespace_bytes"] + figures["tombstone_bytes"] <= 8192
    assert figures["tombstones"] > 0
    check(forest.tree)


def test_a_dropped_root_that_a_caller_holds_is_the_one_found_again(make_forest) -> None:
    forest = make_forest(remembered_bytes=ONE_IDLE)
    held = forest.root("a")
    forest.root("b")
    assert kept(forest) == ["b"]
    assert forest.root("a") is held
    assert kept(forest) == ["a"]
    check(forest.tree)


def test_a_caller_stores_under_a_root_that_was_dropped_meanwhile(make_forest) -> None:
    """As a request does that was queued when its tenant's last chunk was evicted."""
    forest = make_forest(remembered_bytes=NONE_IDLE)
    forest.store("a", [1, 2])
    match = forest.match("a", [1, 2, 3, 4])
    lease = forest.tree.lease(match)
    forest.tree.release(lease)
    assert len(forest.evict(DEVICE, 9)) == 1
    old = match.root
    assert kept(forest) == []
    stale = forest.tree.match(old, forest.bytes([1, 2, 3, 4]))
    assert stale.cached_tokens == 0
    nodes = forest.tree.insert_path(stale, forest.bytes([1, 2, 3, 4]), DEVICE, ["x", "y"], 1)
    assert kept(forest) == ["a"]
    assert forest.root("a") is old
    assert forest.match("a", [1, 2, 3, 4]).path == nodes
    assert list(forest.tree.walk()) == nodes
    check(forest.tree)


@pytest.mark.parametrize("hold", ["claim", "lease", "graft"])
def test_what_is_under_way_keeps_the_root(make_forest, hold: str) -> None:
    forest = make_forest(remembered_bytes=NONE_IDLE)
    if hold == "graft":
        forest.store("shared", [1, 2])
        forest.store("a", [1, 2, 3, 4], ["shared"])
        assert forest.root("a").children is None
        assert set(kept(forest)) == {"shared", "a"}
        forest.evict(DEVICE, 1)
        assert kept(forest) == ["shared"]
        check(forest.tree)
        return
    match = forest.match("a", [1, 2])
    lease = forest.tree.lease(match)
    seen = weakref.ref(match.root)
    claim = forest.tree.claim(match, forest.bytes([1, 2])) if hold == "claim" else None
    del match
    gc.collect()
    assert seen() is forest.root("a")
    assert kept(forest) == (["a"] if claim else [])
    if claim is not None:
        forest.tree.abandon(claim)
        assert kept(forest) == []
    assert forest.root("a") is lease.node
    forest.tree.release(lease)
    check(forest.tree)
    del lease
    claim = None
    gc.collect()
    assert seen() is None


def test_abandoning_a_claim_is_the_end_of_a_new_namespace(make_forest) -> None:
    forest = make_forest(remembered_bytes=NONE_IDLE)
    match = forest.match("a", [1, 2, 3, 4])
    claim = forest.tree.claim(match, forest.bytes([1, 2, 3, 4]))
    assert match.root.nodes == 2
    check(forest.tree)
    forest.tree.abandon(claim)
    assert match.root.nodes == 0
    assert kept(forest) == []
    check(forest.tree)
