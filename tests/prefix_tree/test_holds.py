"""Leases and pins: what they protect, for how long, and what they refuse."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree import InputError, PinBudgetExceeded, check

DEVICE, HOST = 0, 1


def test_a_lease_protects_the_whole_path_and_nothing_beside_it(forest) -> None:
    path = forest.store("a", [1, 2, 3, 4, 5, 6])
    (sibling,) = forest.store("a", [1, 2, 9, 9])[1:]
    lease = forest.tree.lease(forest.match("a", [1, 2, 3, 4]))
    assert forest.evict(DEVICE, 99) == [path[2], sibling]
    check(forest.tree)
    forest.tree.release(lease)
    assert forest.evict(DEVICE, 99) == [path[1], path[0]]


def test_holds_are_counted(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    first, second = forest.tree.lease_node(node), forest.tree.lease_node(node)
    pin = forest.tree.pin(node)
    for end in (lambda: forest.tree.release(first), lambda: forest.tree.unpin(pin)):
        assert forest.evict(DEVICE, 1) == []
        end()
        check(forest.tree)
    assert forest.evict(DEVICE, 1) == []
    forest.tree.release(second)
    assert forest.evict(DEVICE, 1) == [node]


def test_a_lease_holds_the_deepest_node_in_every_tier(forest) -> None:
    top, middle, bottom = forest.store("a", [1, 2, 3, 4, 5, 6])
    for node in (top, middle, bottom):
        forest.copy(node, HOST)
    assert forest.evict(DEVICE, 1) == [bottom]
    lease = forest.tree.lease(forest.match("a", [1, 2, 3, 4, 5, 6]))
    assert [(held.node, held.tier) for held in lease.held] == [(middle, DEVICE), (bottom, HOST)]
    assert forest.evict(DEVICE, 99) == []
    assert forest.evict(HOST, 99) == []
    forest.tree.release(lease)
    assert forest.evict(HOST, 99) == [bottom, middle, top]


def test_a_lease_on_nothing_holds_nothing(forest) -> None:
    lease = forest.tree.lease(forest.match("a", [1, 2]))
    assert lease.held == []
    assert forest.root("a").hits == 0
    forest.tree.release(lease)


def test_extend_moves_the_hold(forest) -> None:
    short, other = forest.store("a", [1, 2]) + forest.store("a", [3, 4])
    lease = forest.tree.lease_node(short)
    forest.tree.extend(lease, other)
    assert lease.node is other
    assert forest.evict(DEVICE, 99) == [short]
    forest.tree.release(lease)
    assert forest.evict(DEVICE, 99) == [other]


def test_a_lease_ends_once(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    lease = forest.tree.lease_node(node)
    forest.tree.release(lease)
    with pytest.raises(KeyError):
        forest.tree.release(lease)
    check(forest.tree)


def test_a_hit_counts_on_the_deepest_chunk_it_reused(forest) -> None:
    first, second = forest.store("a", [1, 2, 3, 4])
    forest.tree.lease(forest.match("a", [1, 2]))
    forest.tree.lease(forest.match("a", [1, 2, 3]))
    forest.tree.lease(forest.match("a", [7, 7]))
    forest.tree.lease_node(first)
    assert (first.hits, second.hits) == (1, 1)


def test_a_pin_protects_until_unpinned(forest) -> None:
    path = forest.store("a", [1, 2, 3, 4])
    pin = forest.tree.pin(path[1], "system prompt")
    forest.now += 1e9
    assert forest.evict(DEVICE, 99) == []
    forest.tree.unpin(pin)
    assert forest.evict(DEVICE, 99) == [path[1], path[0]]


def test_a_pin_ends_at_its_time_and_not_before(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    pin = forest.tree.pin(node, seconds=60)
    forest.now = 1059.9
    forest.tree.expire_pins()
    assert forest.tree.pins == {pin}
    assert forest.evict(DEVICE, 1) == []
    forest.now = 1060
    assert forest.evict(DEVICE, 1) == [node]
    assert forest.tree.pins == set()
    forest.tree.unpin(pin)
    check(forest.tree)


def test_a_root_cannot_be_pinned(forest) -> None:
    with pytest.raises(InputError, match="nothing to pin"):
        forest.tree.pin(forest.match("a", [1, 2]).node)


def test_the_pin_budget_counts_each_chunk_once_and_each_scope_apart(make_forest) -> None:
    forest = make_forest(pin_budget_bytes=5)
    common = [1, 2]
    one, two, three = (forest.store("a", [*common, n, n], size_bytes=2)[1] for n in (3, 4, 5))
    pin = forest.tree.pin(one, "one")
    with pytest.raises(PinBudgetExceeded, match=r"pinning two would hold 6 bytes for scope a.* budget is 5"):
        forest.tree.pin(two, "two")
    assert forest.tree.pins == {pin}
    forest.tree.pin(one, "again")
    forest.tree.pin(forest.store("b", [1, 2], size_bytes=5)[0])
    check(forest.tree)
    forest.tree.unpin(pin)
    with pytest.raises(PinBudgetExceeded, match="this path would hold 6 bytes"):
        forest.tree.pin(three)


def test_expired_pins_leave_the_budget(make_forest) -> None:
    forest = make_forest(pin_budget_bytes=1)
    one, two = forest.store("a", [1, 2]) + forest.store("a", [3, 4])
    forest.tree.pin(one, seconds=10)
    with pytest.raises(PinBudgetExceeded):
        forest.tree.pin(two)
    forest.now = 1010
    pin = forest.tree.pin(two)
    assert forest.tree.pins == {pin}


def test_a_pinned_chunk_in_two_tiers_costs_its_larger_size(make_forest) -> None:
    forest = make_forest(pin_budget_bytes=4)
    (node,) = forest.store("a", [1, 2], size_bytes=4)
    forest.copy(node, HOST, size_bytes=3)
    forest.tree.pin(node)
    (small,) = forest.store("b", [1, 2], size_bytes=4)
    forest.copy(small, HOST, size_bytes=5)
    with pytest.raises(PinBudgetExceeded, match="5 bytes"):
        forest.tree.pin(small)
