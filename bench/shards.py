"""SHARDS: how far the sampled curve is from the exact one, and what it takes beside the tree."""

from __future__ import annotations

import itertools
import time

import numpy as np

from kvtrie.api.trace import Trace, replay
from kvtrie.api.trace.reuse import reuse_distances
from kvtrie.api.traffic.what_if import WhatIf
from kvtrie.prefix_tree.policies import policy_named

CAPACITIES = 40
DRAWS = 8


def run(trace: Trace) -> dict[str, float]:
    """Mean absolute error over capacities of 2.5% to 100%, over several draws; and time per block."""
    capacities = [max(1, trace.unique_blocks * part // CAPACITIES) for part in range(1, CAPACITIES + 1)]
    exact = np.array(reuse_distances(trace).hit_ratios(capacities))
    errors, seconds = [], []
    for draw in range(DRAWS):
        paths = _key_paths(trace, draw)
        what_if = WhatIf()
        start = time.process_time()
        for path in paths:
            what_if.observe("all", path)
        curve = what_if.curve("all")
        seconds.append(time.process_time() - start)
        assert curve is not None
        sampled = np.array([curve.hit_ratio(capacity) for capacity in capacities])
        errors.append(float(np.abs(sampled - exact).mean()))
    blocks = max(1, trace.unique_blocks // 10)
    start = time.process_time()
    replay(trace, blocks, policy_named("lru"), "lru")
    tree_seconds = time.process_time() - start
    return {
        "mean_absolute_error": float(np.mean(errors)),
        "worst_draw": max(errors),
        "ns_per_block": 1e9 * float(np.median(seconds)) / len(trace.blocks),
        "tree_ns_per_block": 1e9 * tree_seconds / len(trace.blocks),
    }


def _key_paths(trace: Trace, draw: int) -> list[list[bytes]]:
    """Every request's chunk keys, as a server has them."""
    random = np.random.default_rng(draw)
    keys = [random.bytes(16) for _ in range(trace.unique_blocks)]
    starts, blocks = trace.starts.tolist(), trace.blocks.tolist()
    return [[keys[block] for block in blocks[start:end]] for start, end in itertools.pairwise(starts)]
