"""The sampled curve against the exact one, and what it may take."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from kvtrie.api.trace import Trace
from kvtrie.api.trace.reuse import reuse_distances
from kvtrie.api.traffic.sampled_paths import MOST_STRETCHES, SampledPaths
from kvtrie.api.traffic.shards import BUDGET, FEWEST, Shards
from kvtrie.api.traffic.what_if import MOST_SCOPES, WhatIf, as_counters, from_counters, without_what_if


def hashes_of(trace: Trace, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, trace.unique_blocks, np.uint64)[trace.blocks]


def told(trace: Trace, seed: int, together: int = 40) -> Shards:
    shards, hashes = Shards(), hashes_of(trace, seed)
    for start in range(0, len(trace), together):
        cut = trace.starts[start : start + together + 1]
        shards.observe([hashes[a:b].tolist() for a, b in itertools.pairwise(cut)], np.diff(cut).tolist())
    return shards


@pytest.mark.parametrize("name", ["mooncake_conversation_dev", "mooncake_synthetic_dev", "kvct_agent_dev"])
def test_the_mean_error_is_small(real_trace: Callable[[str], Trace], name: str) -> None:
    trace = real_trace(name)
    capacities = [max(1, trace.unique_blocks * part // 40) for part in range(1, 41)]
    exact = np.array(reuse_distances(trace).hit_ratios(capacities))
    errors = []
    for seed in range(5):
        shards = told(trace, seed)
        sampled = np.array([shards.hit_ratio(capacity) for capacity in capacities])
        errors.append(np.abs(sampled - exact).mean())
        assert shards.rate < 0.2, "or this test says nothing of sampling"
        assert shards.seen == len(trace.blocks)
    # Which blocks are drawn is chance: the mean over a few draws.
    assert np.mean(errors) <= 0.02
    assert max(errors) <= 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("together", [1, 7, 1000])
def test_unsampled_it_is_exact(
    make_trace: Callable[..., Trace],
    random_paths: Callable[[int], list[list[int]]],
    seed: int,
    together: int,
) -> None:
    trace = make_trace(random_paths(seed))
    shards = told(trace, seed, together)
    assert shards.rate == 1
    # Up to 16 the curve's axis resolves every single block.
    capacities = list(range(16))
    exact = reuse_distances(trace).hit_ratios(capacities)
    assert [shards.hit_ratio(capacity) for capacity in capacities] == pytest.approx(exact, abs=1e-9)


def test_the_budget_holds_and_the_rate_falls() -> None:
    random = np.random.default_rng(0)
    shards = Shards(budget=FEWEST * 2)
    for _ in range(20):
        shards.observe(random.integers(0, 2**64, (5, 1000), np.uint64).tolist(), [1000] * 5)
        assert len(shards._last) == len(shards._ticks) <= FEWEST * 2
        assert (np.diff(shards._ticks) > 0).all()
    assert shards.rate < 0.02
    assert shards.hit_ratio(1e9) == pytest.approx(0.0, abs=0.05)
    assert BUDGET == 8192


def test_nothing_seen_is_no_hits() -> None:
    assert Shards().hit_ratio(100) == 0.0
    shards = Shards()
    shards.observe([], [])
    shards.observe([[], []], [0, 0])
    assert shards.hit_ratio(100) == 0.0


def test_scopes_are_apart_and_bounded() -> None:
    what_if = WhatIf()
    keys = [bytes([number]) * 16 for number in range(40)]
    for _ in range(5):
        what_if.observe("a", keys)
        what_if.observe("b", keys[:1])
    ratios = what_if.hit_ratios({"a": 40, "b": 1, "c": 7})
    # Four of five requests find all; with half the memory the tail of the path would be gone.
    assert ratios["a"] == pytest.approx({50: 0.4, 100: 0.8, 200: 0.8, 400: 0.8}, abs=0.02)
    assert set(ratios) == {"a", "b"}
    for number in range(2 * MOST_SCOPES):
        what_if.observe(f"scope {number}", keys)
    assert (
        len(what_if.hit_ratios({f"scope {number}": 1 for number in range(2 * MOST_SCOPES)}))
        == MOST_SCOPES - 2
    )


def test_as_counters_and_back() -> None:
    ratios = {"tenant:a.b": {50: 0.25, 100: 0.5}}
    counters = {"requests": 3, "what_if.x.y": 1, **as_counters(ratios)}
    assert from_counters(counters) == ratios
    assert without_what_if(counters) == {"requests": 3}


def test_what_is_drawn_is_what_is_below_the_threshold() -> None:
    random = np.random.default_rng(0)
    keys = [random.bytes(16) for _ in range(300)]
    hashes = {key: int.from_bytes(key[:8], "little") for key in keys}
    paths = SampledPaths()
    for threshold in (1 << 64, 1 << 63, 1 << 60):
        for start, end in [(0, 300), (0, 300), (0, 31), (0, 33), (17, 120), (0, 64), (299, 300)]:
            path = keys[start:end]
            for blocks in (len(path), len(path) // 2 + 1):
                paths.add(path, blocks)
                (drawn,), lengths = paths.draw(threshold)
                assert lengths == [blocks]
                expected = [hashes[key] for key in path[:blocks]]
                assert [block for block in drawn if block < threshold] == [
                    b for b in expected if b < threshold
                ]
    # Several at once, that share stretches none of which was known.
    fresh = SampledPaths()
    for blocks in (200, 170, 200):
        fresh.add(keys, blocks)
    together, lengths = fresh.draw(1 << 62)
    assert lengths == [200, 170, 200]
    assert [len(one) for one in together] == [sum(hashes[k] < 1 << 62 for k in keys[:n]) for n in lengths]


def test_what_is_remembered_of_paths_is_bounded() -> None:
    random, paths = np.random.default_rng(0), SampledPaths()
    for _ in range(MOST_STRETCHES // 10 * 3):
        for _ in range(10):
            paths.add([random.bytes(16)], 1)
        paths.draw(1 << 64)
        assert len(paths._stretches) <= MOST_STRETCHES
