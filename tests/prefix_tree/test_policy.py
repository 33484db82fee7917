"""Least recently used: lazily re-sorted, yet always in order."""

from __future__ import annotations

from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrie.prefix_tree import EvictionPolicy, LeastRecentlyUsed, Node, Residence


def leaf(tick: int) -> Residence:
    return Residence(cast(Node, None), 0, f"handle {tick}", 1, tick)


def test_victims_come_in_order_of_last_use() -> None:
    policy: EvictionPolicy = LeastRecentlyUsed()
    leaves = {tick: leaf(tick) for tick in (3, 1, 2)}
    for residence in leaves.values():
        policy.add(residence)
    assert [policy.victim() for _ in range(4)] == [leaves[1], leaves[2], leaves[3], None]


def test_a_use_while_queued_moves_it_back() -> None:
    policy = LeastRecentlyUsed()
    first, second = leaf(1), leaf(2)
    policy.add(first)
    policy.add(second)
    first.last_use = 3
    assert [policy.victim(), policy.victim()] == [second, first]


def test_what_is_held_or_has_children_is_passed_over_until_added_again() -> None:
    policy = LeastRecentlyUsed()
    held, parent, free = leaf(1), leaf(2), leaf(3)
    for residence in (held, parent, free):
        policy.add(residence)
    held.holds = parent.children = 1
    assert policy.victim() is free
    assert policy.victim() is None
    held.holds = parent.children = 0
    assert policy.victim() is None
    policy.add(parent)
    policy.add(held)
    assert [policy.victim(), policy.victim()] == [held, parent]


def test_queueing_twice_changes_nothing() -> None:
    policy = LeastRecentlyUsed()
    residence = leaf(1)
    policy.add(residence)
    residence.last_use = 2
    policy.add(residence)
    assert len(policy) == 1
    assert [policy.victim(), policy.victim()] == [residence, None]


def test_discard_forgets_also_after_a_use() -> None:
    policy = LeastRecentlyUsed()
    residence, other = leaf(1), leaf(2)
    policy.add(residence)
    policy.add(other)
    residence.last_use = 5
    policy.discard(residence)
    policy.discard(residence)
    assert residence.queued_at == -1
    assert [policy.victim(), policy.victim()] == [other, None]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("uhrvd"), st.integers(0, 5)), max_size=40))
def test_any_sequence_of_uses_and_holds_gives_the_oldest_free_leaf(steps: list[tuple[str, int]]) -> None:
    """u use, h hold, r release, v take a victim, d discard; against a plain search for the oldest."""
    policy = LeastRecentlyUsed()
    leaves = [leaf(tick) for tick in range(6)]
    there = set(leaves)
    for residence in leaves:
        policy.add(residence)
    for tick, (what, which) in enumerate(steps, 10):
        residence = leaves[which]
        if what == "u":
            residence.last_use = tick
        elif what == "h":
            residence.holds += 1
        elif what == "r" and residence.holds:
            residence.holds -= 1
            if residence in there and residence.evictable:  # what has left is not queued again
                policy.add(residence)
        elif what == "d":
            policy.discard(residence)
            there.discard(residence)
        elif what == "v":
            free = [r for r in there if r.evictable]
            expected = min(free, key=lambda r: r.last_use, default=None)
            assert policy.victim() is expected
            there.discard(cast(Residence, expected))
