"""Two clocks: lifetimes and ages follow the steady one, and what people read is unix time by the wall clock."""

from __future__ import annotations

import itertools
import time

import pytest

from kvtrie.prefix_tree import InputError, Namespace, Pin, PrefixTree, Tier, check, take_snapshot
from kvtrie.prefix_tree.policies import LearnedReturn, policy_named
from kvtrie.prefix_tree.policies.named import POLICIES

DEVICE = 0


def test_a_pin_s_time_is_over_though_the_wall_clock_is_set_back(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    forest.tree.pin(node, seconds=60)
    forest.set_by = -3600.0
    forest.now += 59
    assert forest.evict(DEVICE, 1) == []
    forest.now += 1
    assert forest.evict(DEVICE, 1) == [node]
    assert not forest.tree.pins


def test_a_pin_outlasts_a_wall_clock_that_is_set_forward(forest) -> None:
    (node,) = forest.store("a", [1, 2])
    pin = forest.tree.pin(node, seconds=3600)
    forest.set_by = 7200.0
    assert forest.evict(DEVICE, 1) == []
    assert forest.tree.pins == {pin}


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_pin_holds_for_some_time_or_is_refused(forest, seconds: float) -> None:
    (node,) = forest.store("a", [1, 2])
    with pytest.raises(InputError, match=f"a pin for {seconds} seconds holds nothing"):
        forest.tree.pin(node, seconds=seconds)
    assert not forest.tree.pins
    check(forest.tree)


def test_a_snapshot_has_unix_times_by_the_wall_clock_as_it_is_set_now(forest) -> None:
    """Stored at 1000, used at 1010 and pinned for a minute; at 1030 the wall clock is an hour back."""
    kept, gone = forest.store("a", [1, 2]) + forest.store("a", [3, 4])
    forest.now += 10
    forest.tree.pin(kept, "kept", seconds=60)
    assert forest.evict(DEVICE, 1) == [gone]
    forest.now, forest.set_by = 1030.0, -3600.0
    picture = take_snapshot(forest.tree, "engine")
    (node,), (stone,) = picture.nodes, picture.tombstones
    assert picture.taken_at == 1030 - 3600
    assert (node.created_at, node.last_used_at) == (1000 - 3600, 1010 - 3600)
    assert node.pin is not None
    assert node.pin.expires_at == 1070 - 3600
    assert stone.evicted_at == 1010 - 3600
    assert (kept.created_at, kept.last_used_at) == (node.created_at, node.last_used_at)


def test_a_tree_s_own_clocks_are_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of the machine is set back by a day: ages stay what they are, and unix times follow."""
    tree = PrefixTree(2, [Tier("device", 10)])
    root = tree.root(Namespace("a", chunk_tokens=2))
    (node,) = tree.insert_path(tree.match(root, bytes(8)), bytes(8), 0, [0], 1)
    wall = time.time()
    tree.clock = lambda: time.time() - 86400
    picture = take_snapshot(tree, "engine")
    age = picture.taken_at - picture.nodes[0].created_at
    assert 0 <= age < 600
    assert abs(picture.taken_at - (wall - 86400)) < 600
    pin: Pin = tree.pin(node, seconds=1000.0)
    assert pin.expires_at is not None
    assert 400 < pin.expires_at - tree.clock() <= 1000


def test_a_time_reads_the_same_until_the_wall_clock_is_set(make_forest) -> None:
    """Two clocks are never read at one instant, and they drift: that alone changes no time in a snapshot."""
    forest = make_forest()
    drifts = itertools.cycle((0.0, 0.01, -0.02, 0.03))
    forest.tree.clock = lambda: forest.now + forest.set_by + next(drifts)
    forest.store("a", [1, 2])
    first = take_snapshot(forest.tree, "engine")
    forest.now += 7
    later = [take_snapshot(forest.tree, "engine") for _ in range(9)]
    assert all(picture.nodes == first.nodes for picture in later)
    assert {picture.taken_at - first.taken_at for picture in later} == {7.0}
    forest.set_by = 60.0
    (moved,) = take_snapshot(forest.tree, "engine").nodes
    assert abs(moved.created_at - first.nodes[0].created_at - 60) < 0.1


def test_priorities_expire_though_the_wall_clock_is_set_back(make_forest) -> None:
    forest = make_forest()
    policy = policy_named("priority", priorities={"gold": 1.0}, ttl_seconds=20, steady=lambda: forest.now)
    forest.tree = PrefixTree(
        2,
        [Tier("device", 100, policy), Tier("host", 1)],
        clock=lambda: forest.now + forest.set_by,
        steady=lambda: forest.now,
    )
    (gold,) = forest.store("gold", [1, 2])
    forest.set_by = -3600.0
    forest.now += 15
    (plain,) = forest.store("plain", [1, 2])
    assert forest.evict(DEVICE, 1) == [plain], "the priority still counts"
    (plain,) = forest.store("plain", [1, 2])
    forest.now += 5
    assert forest.evict(DEVICE, 1) == [gold], "not used for twenty seconds"


@pytest.mark.parametrize("steady_too", [False, True])
@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("step_seconds", [-500.0, -50.0, 50.0])
def test_a_clock_set_in_the_middle_of_a_request_leaves_nothing_behind(
    policy: str, step_seconds: float, steady_too: bool
) -> None:
    """A request is under way while the clock is set; four more share its prefix; then all can be evicted."""
    now, set_by = 1000.0, 0.0
    parameters = {"ttl_seconds": 20, "steady": lambda: now} if policy == "priority" else {}
    tree = PrefixTree(
        2,
        [Tier("device", 100, policy_named(policy, capacity_chunks=100, **parameters))],
        clock=lambda: now + set_by,
        steady=lambda: now,
    )
    root = tree.root(Namespace("a", chunk_tokens=2))

    def request(tokens: list[int], set_clock_by: float = 0.0) -> None:
        nonlocal now, set_by
        packed = b"".join(token.to_bytes(4, "little") for token in tokens)
        match = tree.match(root, packed)
        lease = tree.lease(match)
        handles = list(range(len(tokens) // 2 - len(match.path)))
        if handles:
            tree.extend(lease, tree.insert_path(match, packed, DEVICE, handles, 1)[-1])
        now, set_by = (now + set_clock_by, set_by) if steady_too else (now, set_by + set_clock_by)
        tree.release(lease)
        check(tree)

    request([9, 9, 9, 9])
    now += 100
    request([1, 1, 2, 2, 3, 3, 4, 4], set_clock_by=step_seconds)
    for last in (5, 6, 7, 8):
        now += 1
        request([1, 1, 2, 2, last, last])
    chunks = tree.tiers[DEVICE].chunks
    assert chunks == 2 + 4 + 4
    assert len(tree.evict(DEVICE, 100)) == chunks
    check(tree)


def test_learned_sees_the_time_between_turns_on_the_steady_clock(forest) -> None:
    """The wall clock is set back between two turns: their gap is what really passed."""
    policy = LearnedReturn()
    tree = PrefixTree(
        2, [Tier("device", 100, policy)], clock=lambda: forest.now + forest.set_by, steady=lambda: forest.now
    )
    forest.tree = tree
    for turn in range(1, 4):
        match = forest.match("a", [1] * 4 * turn)
        lease = tree.lease(match)
        tree.extend(lease, forest.store("a", [1] * 4 * turn)[-1])
        tree.release(lease)
        forest.now += 32
        forest.set_by -= 1000
    ends = [note.last for note in policy._notes.values() if note.is_end]
    assert ends == [1000 + 2 * 32]
    assert len(tree.evict(DEVICE, 100)) == 6
    check(tree)
