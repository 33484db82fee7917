"""What pins cost: bytes per scope, kept as they change, and work that does not grow with the pins there are."""

from __future__ import annotations

import random
import weakref

import pytest

from kvtrie.prefix_tree import InputError, PinBudgetExceeded, check
from tests.prefix_tree.work_count import lines_run

DEVICE, HOST = 0, 1


def test_overlapping_pins_cost_each_chunk_once(forest) -> None:
    tree = forest.tree
    top, one = forest.store("a", [1, 2, 3, 4], size_bytes=5)
    (two,) = forest.store("a", [1, 2, 5, 6], size_bytes=3)[1:]
    pins = [tree.pin(node) for node in (one, two, top, one)]
    assert tree.pinned_bytes("a") == 5 + 5 + 3
    for pin, left in zip(pins, (13, 10, 10, 0)):
        tree.unpin(pin)
        check(tree)
        assert tree.pinned_bytes("a") == left


def test_a_tenant_s_pin_pays_for_the_shared_part_of_its_path(forest) -> None:
    tree = forest.tree
    shared = forest.store("s", [1, 2], size_bytes=5)[0]
    mine = forest.store("a", [1, 2, 3, 4], ["s"], size_bytes=3)[1]
    theirs = tree.pin(shared)
    own = tree.pin(mine)
    assert (tree.pinned_bytes("s"), tree.pinned_bytes("a")) == (5, 8)
    assert tree.figures()["pinned_bytes"] == 13
    tree.unpin(theirs)
    assert (tree.pinned_bytes("s"), tree.pinned_bytes("a")) == (0, 8)
    tree.unpin(own)
    assert tree.figures()["pinned_bytes"] == tree.figures()["pins"] == 0


def test_a_pinned_chunk_that_comes_into_another_tier_and_leaves_it(forest) -> None:
    """The copy on the host is larger, and no hold is on it: it may be evicted there."""
    tree = forest.tree
    (node,) = forest.store("a", [1, 2], size_bytes=4)
    pin = tree.pin(node)
    forest.copy(node, HOST, size_bytes=9)
    assert tree.pinned_bytes("a") == 9
    check(tree)
    assert forest.evict(HOST, 1) == [node]
    assert tree.pinned_bytes("a") == 4
    check(tree)
    forest.copy(node, HOST, size_bytes=1)
    assert tree.pinned_bytes("a") == 4
    tree.unpin(pin)
    check(tree)


def test_chunks_below_a_pin_cost_nothing(forest) -> None:
    (top,) = forest.store("a", [1, 2], size_bytes=4)
    forest.tree.pin(top)
    forest.store("a", [1, 2, 3, 4, 5, 6], size_bytes=4)
    assert forest.tree.pinned_bytes("a") == 4
    assert len(forest.evict(DEVICE, 99)) == 2
    assert forest.tree.pinned_bytes("a") == 4
    check(forest.tree)


def test_a_chunk_that_is_being_computed_cannot_be_pinned(forest) -> None:
    claim = forest.tree.claim(forest.match("a", [1, 2]), forest.bytes([1, 2]))
    with pytest.raises(InputError, match="still being computed"):
        forest.tree.pin(claim.nodes[0])
    forest.tree.abandon(claim)
    check(forest.tree)


def test_pins_end_in_the_order_of_their_times(forest) -> None:
    random.seed(3)
    seconds = random.sample(range(1, 201), 200)
    pins = {end: forest.tree.pin(forest.store("a", [end, end])[0], seconds=end) for end in seconds}
    for end in range(0, 200, 3):
        forest.tree.unpin(pins.pop(end, None) or forest.tree.pin(forest.store("a", [999, 999])[0]))
    start = forest.now
    for elapsed in range(0, 201, 10):
        forest.now = start + elapsed
        forest.tree.expire_pins()
        assert forest.tree.pins == {pin for end, pin in pins.items() if end > elapsed}
        check(forest.tree)


def test_unpinned_before_their_time_pins_are_forgotten(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    for _ in range(1000):
        forest.tree.unpin(forest.tree.pin(node, seconds=1e9))
    assert len(forest.tree._pin_book._ending) < 200
    check(forest.tree)


def test_a_pin_that_ended_early_keeps_nothing_alive(make_forest) -> None:
    forest = make_forest(remembered_bytes=0)
    (node,) = forest.store("a", [1, 2])
    forest.tree.unpin(forest.tree.pin(node, seconds=1e9))
    seen = weakref.ref(node.root)
    del node
    assert len(forest.evict(DEVICE, 1)) == 1
    assert seen() is None


def work_of_an_eviction(make_forest, pins: int) -> int:
    forest = make_forest(capacity_bytes=100_000)
    for number in range(pins):
        forest.tree.pin(forest.store("a", [number, 7])[0], seconds=1000 + number)
    for number in range(4):
        forest.store("b", [number, 1])
    forest.evict(DEVICE, 1)
    return lines_run(lambda: forest.evict(DEVICE, 1))


def test_an_eviction_does_as_much_work_with_five_thousand_pins_as_with_five(make_forest) -> None:
    assert work_of_an_eviction(make_forest, 5000) <= work_of_an_eviction(make_forest, 5) + 5


def work_of_a_pin(make_forest, pins: int) -> int:
    forest = make_forest(capacity_bytes=100_000, pin_budget_bytes=50_000)
    for number in range(pins):
        forest.tree.pin(forest.store("a", [1, 1, 2, 2, number, 7])[-1], seconds=1000 + number)
    node = forest.store("a", [1, 1, 2, 2, 10_000, 7])[-1]
    return lines_run(lambda: forest.tree.pin(node, seconds=10))


def test_a_pin_within_a_budget_does_as_much_work_with_two_thousand_pins_as_with_two(make_forest) -> None:
    assert work_of_a_pin(make_forest, 2000) <= work_of_a_pin(make_forest, 2) + 5


def test_the_budget_is_exact_to_the_byte(make_forest) -> None:
    forest = make_forest(pin_budget_bytes=12)
    first = forest.store("a", [1, 1, 2, 2], size_bytes=3)[-1]
    second = forest.store("a", [1, 1, 3, 3, 4, 4], size_bytes=3)[-1]
    third = forest.store("a", [5, 5], size_bytes=1)[-1]
    forest.tree.pin(first)
    forest.tree.pin(second)
    with pytest.raises(PinBudgetExceeded, match="would hold 13 bytes for scope a, whose budget is 12"):
        forest.tree.pin(third)
    assert forest.tree.pinned_bytes("a") == 12
    check(forest.tree)
