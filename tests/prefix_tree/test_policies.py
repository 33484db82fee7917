"""Each policy's defining behaviour, through the tree: who goes, and who stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvtrie.prefix_tree import EvictionPolicy, InputError, Node, Tier
from kvtrie.prefix_tree.policies import (
    GreedyDualSizeFrequency,
    RecomputeSeconds,
    SegmentedLru,
    TwoQueue,
    policy_named,
)
from kvtrie.prefix_tree.policies.named import POLICIES
from kvtrie.testing import EvictionPolicyContract
from kvtrie.testing.one_tier_tree import OneTierTree

DEVICE = 0


class Requests:
    """A forest of one-token chunks whose device tier has the policy under test; capacity is kept by `evict`."""

    def __init__(self, make_forest: Callable[..., Any], name: str, **parameters: Any) -> None:
        self.forest = make_forest(chunk_tokens=1)
        if name == "priority":
            parameters["steady"] = lambda: self.forest.now
        self.policy = policy_named(name, **parameters)
        self.tree = self.forest.tree
        self.tree.tiers[DEVICE] = Tier("device", 1_000, self.policy)

    def ask(self, tokens: Sequence[int], scope: str = "a", size_bytes: int = 1) -> list[Node]:
        """One request: match, lease, store what is missing, release; returns its path."""
        match = self.forest.match(scope, tokens)
        lease = self.tree.lease(match)
        path = match.path
        if len(path) < len(tokens):
            missing = range(len(tokens) - len(path))
            path = path + self.tree.insert_path(match, self.forest.bytes(tokens), DEVICE, missing, size_bytes)
            self.tree.extend(lease, path[-1])
        self.tree.release(lease)
        return path

    def gone(self, count: int = 1) -> list[int]:
        """Evicts so many chunks of one byte; the last token of each path that lost its end."""
        return [int.from_bytes(evicted.node.tokens, "little") for evicted in self.tree.evict(DEVICE, count)]


@pytest.fixture
def requests(make_forest: Callable[..., Any]) -> Callable[..., Requests]:
    return lambda name, **parameters: Requests(make_forest, name, **parameters)


# ---- what holds for all


class TestEveryPolicy(EvictionPolicyContract):
    @pytest.fixture(autouse=True, params=POLICIES)
    def _name(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def make_policy(self) -> EvictionPolicy:
        return policy_named(self.name, capacity_chunks=40)

    def _serve(self, cache: OneTierTree) -> None:
        super()._serve(cache)
        assert len(cache.policy) == 0, "beyond the contract: ours count their leaves"


class TestEveryPolicyForALargeTier(TestEveryPolicy):
    """Queues and memories of their default size, which the checks do not fill."""

    def make_policy(self) -> EvictionPolicy:
        return policy_named(self.name)


# ---- LFU


def test_lfu_gives_up_the_least_used_and_of_equals_the_oldest(requests) -> None:
    cache = requests("lfu")
    for prompt in ([1], [1], [1], [2], [3], [2]):
        cache.ask(prompt)
    assert cache.gone(3) == [3, 2, 1]


def test_lfu_counts_for_a_path_what_its_descendants_were_used(requests) -> None:
    """[1] itself is never asked for, yet four requests went through it."""
    cache = requests("lfu")
    for prompt in ([1, 5], [1, 6], [1, 7], [1, 5], [2], [2], [2]):
        cache.ask(prompt)
    assert cache.gone(3) == [6, 7, 5]
    assert cache.gone(2) == [2, 1]


def test_lfu_forgets_what_left(requests) -> None:
    cache = requests("lfu")
    for prompt in ([1], [1], [1]):
        cache.ask(prompt)
    assert cache.gone() == [1]
    for prompt in ([2], [2], [1]):
        cache.ask(prompt)
    assert cache.gone() == [1]


@pytest.mark.parametrize("name", ["lru", "lfu"])
def test_the_reference_rule_block_by_block(requests, name: str) -> None:
    """Touch every block of a request, tail to head, then evict leaves down to capacity: plain dictionaries."""
    rng = random.Random(11)
    cache = requests(name)
    used: dict[tuple[int, ...], tuple[int, int]] = {}
    clock = hits = 0
    for _ in range(1500):
        prompt = tuple(min(3, int(rng.expovariate(0.7))) for _ in range(rng.randint(1, 8)))
        present = next((n for n in range(len(prompt), 0, -1) if prompt[:n] in used), 0)
        assert cache.forest.cached("a", prompt) == present
        hits += present
        for length in range(len(prompt), 0, -1):
            clock += 1
            uses, _ = used.get(prompt[:length], (0, 0))
            used[prompt[:length]] = (uses + 1, clock)
        while len(used) > 60:
            inner = {block[:-1] for block in used}
            leaves = [block for block in used if block not in inner]
            del used[min(leaves, key=lambda block: used[block] if name == "lfu" else used[block][1:])]
        cache.ask(prompt)
        cache.gone(cache.tree.tiers[DEVICE].used_bytes - 60)
        assert len(cache.tree) == len(used)
    assert hits > 2000


# ---- segments and ghosts


def test_slru_protects_what_was_used_twice_from_a_scan(requests) -> None:
    cache = requests("slru")
    for prompt in ([1], [2], [1]):
        cache.ask(prompt)
    for n in range(10, 30):
        cache.ask([n])
    assert cache.gone(21) == [2, *range(10, 30)]
    assert cache.gone(9) == [1]


def test_slru_demotes_the_oldest_when_too_much_is_protected(requests) -> None:
    cache = requests("slru", protected=0.5)
    for prompt in ([1], [2], [3], [1], [2], [3], [4]):
        cache.ask(prompt)
    # Two of four may be protected: [1] goes on probation behind [4], and back up if it is used there.
    assert cache.gone(2) == [4, 1]


def test_two_queue_keeps_what_comes_back_after_it_has_gone(requests) -> None:
    cache = requests("2q", ghosts=10)
    cache.ask([1])
    cache.ask([1])  # while it waits: changes nothing
    for n in range(2, 6):
        cache.ask([n])
    assert cache.gone() == [1]
    cache.ask([1])
    for n in range(6, 9):
        cache.ask([n])
    assert cache.gone(5) == [2, 3, 4, 5, 6]


def test_s3_fifo_ignores_recency_but_two_uses_lead_to_the_main_queue(requests) -> None:
    cache = requests("s3fifo", ghosts=10)
    for prompt in ([1], [2], [3], [2], [2], [1]):
        cache.ask(prompt)
    assert cache.gone(2) == [1, 3]
    assert cache.gone() == [2]


def test_s3_fifo_admits_what_returns_to_the_main_queue(requests) -> None:
    cache = requests("s3fifo", ghosts=10)
    cache.ask([1])
    assert cache.gone() == [1]
    for prompt in ([1], [2], [3]):
        cache.ask(prompt)
    assert cache.gone(3) == [2, 3, 1]


def test_arc_moves_its_target_towards_whoever_returns(requests) -> None:
    cache = requests("arc", ghosts=10)
    cache.ask([1])
    assert cache.gone() == [1]
    assert cache.policy.target_once == 0.0
    cache.ask([1])
    assert cache.policy.target_once == pytest.approx(0.1)
    assert cache.gone() == [1]  # it had come back, so it went from the queue of those used again
    cache.ask([1])
    assert cache.policy.target_once == 0.0


def test_arc_gives_up_what_was_used_once_before_what_was_used_again(requests) -> None:
    cache = requests("arc", ghosts=10)
    for prompt in ([1], [1], [2], [3]):
        cache.ask(prompt)
    assert cache.gone(3) == [2, 3, 1]


@pytest.mark.parametrize(("name", "remembered"), [("2q", 2), ("arc", 2), ("s3fifo", 2)])
def test_ghosts_are_bounded(requests, name: str, remembered: int) -> None:
    cache = requests(name, ghosts=remembered)
    for n in range(20):
        cache.ask([n])
    assert len(cache.gone(20)) == 20
    ghosts = [value for value in vars(cache.policy).values() if type(value).__name__ == "Ghosts"]
    assert max(map(len, ghosts)) == remembered


# ---- values and priorities


def test_aging_lets_new_favourites_overtake_old_ones(requests) -> None:
    """LFU would keep [1], used five times long ago; with aging what was given up since counts against it."""
    cache = requests("lfuda")
    for prompt in ([1], [1], [1], [1], [1]):
        cache.ask(prompt)
    for n in range(2, 9):
        cache.ask([n])
        cache.ask([n])
        assert cache.gone() == [n if n < 4 else 1 if n == 4 else n - 1]


def test_gdsf_prefers_small_and_costly_chunks(requests) -> None:
    cache = requests("gdsf")
    cache.ask([1], size_bytes=4)
    cache.ask([2], size_bytes=1)
    cache.ask([3], size_bytes=2)
    assert [cache.gone() for _ in range(3)] == [[1], [3], [2]]


def test_pgdsf_prefers_deep_chunks_which_cost_more_to_have_again(requests) -> None:
    cache = requests("pgdsf", per_chunk_above=1.0)
    cache.ask([1, 1, 1])
    cache.ask([2])
    assert cache.gone(4) == [2, 1, 1, 1]
    assert RecomputeSeconds(2.0, 0.5)(cache.ask([4, 4, 4])[-1].at[DEVICE]) == 3.0


def test_priority_goes_before_recency_until_it_expires(requests) -> None:
    cache = requests("priority", priorities={"vip": 2, "low": -1}, ttl_seconds=60)
    for n, scope in ((1, "vip"), (2, "a"), (3, "low"), (4, "vip"), (5, "a")):
        cache.ask([n], scope)
    assert cache.gone(2) == [3, 2]
    cache.forest.now += 50
    cache.ask([6], "a")
    cache.ask([4], "vip")
    cache.forest.now += 20
    assert cache.gone(4) == [1, 5, 6, 4]


def test_without_expiry_priorities_last(requests) -> None:
    cache = requests("priority", priorities={"vip": 1})
    cache.ask([1], "vip")
    cache.forest.now += 1e9
    cache.ask([2])
    assert cache.gone(2) == [2, 1]


# ---- names


def test_a_policy_has_a_name_and_its_parameters(requests) -> None:
    assert isinstance(policy_named("slru", protected=0.5), SegmentedLru)
    assert isinstance(policy_named("gdsf"), GreedyDualSizeFrequency)
    assert isinstance(policy_named("2q", ghosts=7), TwoQueue)
    assert policy_named("lru") is not policy_named("lru")
    assert sorted(POLICIES) == list(POLICIES)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("mru", {}, "no eviction policy is named 'mru'; there are 2q, arc"),
        ("lru", {"size": 3}, "eviction policy 'lru': .*size"),
        ("slru", {"protected": 1.5}, "protected=1.5 is not a fraction"),
        ("2q", {"waiting": -1}, "waiting=-1 is not a fraction"),
        ("2q", {"ghosts": 0}, "ghosts=0"),
        ("s3fifo", {"small": 2}, "small=2 is not a fraction"),
        ("s3fifo", {"ghosts": 0}, "ghosts=0"),
        ("arc", {"ghosts": 0}, "ghosts=0"),
        ("priority", {"ttl_seconds": 0}, "ttl_seconds=0 is not positive"),
        ("pgdsf", {"per_chunk_above": -1.0}, "per_chunk_above=-1.0"),
    ],
)
def test_what_makes_no_policy_is_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        policy_named(name, **parameters)
