"""Replays against reference figures, against a cache written down as simply as can be, and against each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from kvtrie.api.trace import Trace, gather, replay
from kvtrie.api.trace.agent_sessions import AgentSessions
from kvtrie.api.trace.eviction_ages import log2_histogram
from kvtrie.api.trace.policies import fresh_policy, simulated_policies
from kvtrie.api.trace.reuse import NEVER, reuse_distances
from tests.api.trace.conftest import DATA

FRACTIONS = (0.01, 0.05, 0.10, 0.25, 0.50)
REFERENCE = {
    ("mooncake_conversation_dev", "lru"): (0.0429, 0.1037, 0.1965, 0.2956, 0.3359),
    ("mooncake_conversation_dev", "lfu"): (0.0481, 0.1018, 0.1648, 0.2814, 0.3356),
    ("mooncake_conversation_dev", "opt"): (0.1819, 0.3223, 0.3402, 0.3402, 0.3402),
    ("mooncake_synthetic_dev", "lru"): (0.0099, 0.0281, 0.0615, 0.1413, 0.2652),
    ("mooncake_synthetic_dev", "lfu"): (0.0114, 0.0315, 0.0740, 0.1651, 0.2757),
    ("mooncake_synthetic_dev", "opt"): (0.0865, 0.1983, 0.2632, 0.3282, 0.3282),
    ("mooncake_toolagent_mix_dev", "lru"): (0.2127, 0.2653, 0.2757, 0.2763, 0.2816),
    ("mooncake_toolagent_mix_dev", "lfu"): (0.2750, 0.2763, 0.2763, 0.2763, 0.2816),
    ("mooncake_toolagent_mix_dev", "opt"): (0.2810, 0.2945, 0.2945, 0.2945, 0.2945),
}
AGENT_LRU = (0.2990, 0.7952, 0.9288, 0.9617, 0.9641)


def run(trace: Trace, name: str, blocks: int) -> float:
    policy, before_request = fresh_policy(name, trace, blocks)
    return replay(trace, blocks, policy, name, before_request=before_request).hit_ratio_blocks()


@pytest.mark.parametrize(("name", "policy"), REFERENCE)
def test_reference_hit_ratios(real_trace: Callable[[str], Trace], name: str, policy: str) -> None:
    trace = real_trace(name)
    # The larger trace at one of its capacities: all five take ten seconds.
    places = (1,) if name == "mooncake_conversation_dev" else range(5)
    for place in places:
        ratio = run(trace, policy, int(FRACTIONS[place] * trace.unique_blocks))
        assert ratio == pytest.approx(REFERENCE[name, policy][place], abs=0.001)


@pytest.mark.parametrize(
    "name", ["mooncake_conversation_dev", "mooncake_synthetic_dev", "mooncake_toolagent_mix_dev"]
)
def test_reuse_distances_tell_lru_at_every_capacity(real_trace: Callable[[str], Trace], name: str) -> None:
    trace = real_trace(name)
    ratios = reuse_distances(trace).hit_ratios([int(part * trace.unique_blocks) for part in FRACTIONS])
    assert ratios == pytest.approx(REFERENCE[name, "lru"], abs=0.001)


def test_the_agent_trace_whole_by_distances_and_its_beginning_by_replay(
    real_trace: Callable[[str], Trace],
) -> None:
    trace = real_trace("kvct_agent_dev")
    assert (len(trace), len(trace.blocks), len(trace.tenants)) == (2215, 4413980, 40)
    ratios = reuse_distances(trace).hit_ratios([int(part * trace.unique_blocks) for part in FRACTIONS])
    assert ratios == pytest.approx(AGENT_LRU, abs=0.001)
    reader = AgentSessions(DATA / "kvct_agent_dev.jsonl.gz")
    start = gather("start", 64, itertools.islice(reader.requests(), 80))
    sizes = [int(part * start.unique_blocks) for part in FRACTIONS[1:4]]
    assert [run(start, "lru", size) for size in sizes] == pytest.approx(
        reuse_distances(start).hit_ratios(sizes), abs=1e-12
    )


class PlainLeafLru:
    """The rules, word by word: slow, and nothing to get wrong."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.last: dict[int, int] = {}
        self.children: dict[int, set[int]] = {}
        self.parent: dict[int, int] = {}
        self.now = 0

    def request(self, path: list[int]) -> int:
        served = next((i for i, block in enumerate(path) if block not in self.last), len(path))
        for above, block in zip([-1, *path], path):
            self.parent[block] = above
            self.children.setdefault(above, set()).add(block)
        for block in reversed(path):
            self.now += 1
            self.last[block] = self.now
        while len(self.last) > self.capacity:
            leaves = [b for b in self.last if not self.children.get(b, set()) & self.last.keys()]
            del self.last[min(leaves, key=self.last.__getitem__)]
        return served


@pytest.mark.parametrize("seed", range(4))
def test_lru_is_the_plain_one_and_opt_beats_all(
    make_trace: Callable[..., Trace], random_paths: Callable[[int], list[list[int]]], seed: int
) -> None:
    paths = random_paths(seed)
    trace = make_trace(paths)
    for capacity in (1, 7, 30, 90):
        plain = PlainLeafLru(capacity)
        served = [plain.request(path) for path in paths]
        policy, _ = fresh_policy("lru", trace, capacity)
        result = replay(trace, capacity, policy)
        assert result.matched.tolist() == served
        assert reuse_distances(trace).hit_ratios([capacity])[0] == pytest.approx(result.hit_ratio_blocks())
        best = run(trace, "opt", capacity)
        for name in simulated_policies():
            assert run(trace, name, capacity) <= best + 1e-12, name
    assert run(trace, "lru", trace.unique_blocks) == run(trace, "opt", trace.unique_blocks)


def test_ages_lifetimes_and_tenants(make_trace: Callable[..., Trace]) -> None:
    # Room for two: block 1 goes at 9 s, nine after it came and four after its last use.
    paths = [[1], [2], [1], [2], [2], [1], [2], [2], [2], [3]]
    trace = make_trace(paths, ["a", "b", "a", "b", "b", "a", "b", "b", "b", "a"])
    told: list[int] = []
    policy, _ = fresh_policy("lru", trace, 2)
    result = replay(trace, 2, policy, "lru", progress=told.append)
    result.ages.settle()
    assert result.ages.evictions == 1
    assert (result.ages.lifetimes[4], result.ages.idle[3]) == (1, 1)
    assert sum(told) == len(trace)
    assert trace.tenants == ("a", "b")
    assert (result.hit_ratio_blocks(0), result.hit_ratio_blocks(1)) == (0.5, 5 / 6)
    # A prompt of one whole block leaves one of its four tokens to compute.
    assert result.hit_ratio_tokens(1) == pytest.approx(5 * 3 / 24)
    reuse = reuse_distances(trace)
    assert reuse.distances.tolist() == [NEVER, NEVER, 1, 1, 0, 1, 1, 0, 0, NEVER]
    assert np.nanmax(reuse.waits) == 3.0


def test_bins_of_powers_of_two() -> None:
    counts = log2_histogram([0.0, 0.9, 1.0, 1.9, 2.0, 3.9, 4.0, 1e30])
    assert counts[:4].tolist() == [2, 2, 2, 1]
    assert counts[-1] == 1
    assert log2_histogram([]).sum() == 0
