"""Flood: one tenant asks random prompts at ten times the others' rate. What do the others lose?

The others are four tenants made of real conversations: a conversation's tenant is drawn by its second block, and
tenants share nothing. The flooding tenant's prompts are as long as theirs and never come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvtrie.api.trace import Trace, TraceRequest, gather, replay
from kvtrie.prefix_tree.policies import policy_named

TENANTS = 4
TIMES = 10
FLOOD = "flood"
_APART = 1 << 40


@dataclass(frozen=True, slots=True)
class FloodResult:
    """Hit ratio in blocks of the four together, under one policy at one capacity."""

    policy: str
    capacity_percent: float
    """Of what the four touch."""
    capacity_blocks: int
    requests: int
    flood_requests: int
    alone: float
    """Without the fifth tenant."""
    flooded: float
    flooded_with_shares: float
    """Flooded, each of the four keeping a part of the memory, as large as its part of their traffic."""
    lost: float
    """Part of their hits that the flood costs."""
    lost_with_shares: float


def run(
    trace: Trace, requests: int = 1500, percents: Sequence[float] = (10, 25, 50), policy: str = "lru"
) -> list[FloodResult]:
    """The experiment on the first `requests` requests of a trace."""
    calm = _conversations(trace, requests)
    alone = gather("alone", trace.block_tokens, calm)
    flooded = gather("flooded", trace.block_tokens, [*calm, *_flood(calm)])
    asked = np.bincount(alone.tenant_of, alone.asked_blocks)
    found = []
    for percent in percents:
        blocks = int(percent / 100 * alone.unique_blocks)
        shares = {name: int(blocks * part) for name, part in zip(alone.tenants, asked / asked.sum())}
        before, after, kept = (
            _hit_ratio(of, blocks, policy, wanted)
            for of, wanted in ((alone, None), (flooded, None), (flooded, shares))
        )
        found.append(
            FloodResult(
                policy=policy,
                capacity_percent=percent,
                capacity_blocks=blocks,
                requests=len(alone),
                flood_requests=len(flooded) - len(alone),
                alone=before,
                flooded=after,
                flooded_with_shares=kept,
                lost=1 - after / before,
                lost_with_shares=1 - kept / before,
            )
        )
    return found


def _hit_ratio(trace: Trace, blocks: int, policy: str, shares: Mapping[str, int] | None) -> float:
    """Blocks served over blocks asked for, the flooding tenant left out."""
    result = replay(trace, blocks, policy_named(policy, capacity_chunks=blocks), policy, shares=shares)
    others = np.array([trace.tenants[tenant] != FLOOD for tenant in trace.tenant_of])
    return float(trace.served_blocks(result.matched)[others].sum() / trace.asked_blocks[others].sum())


def _conversations(trace: Trace, requests: int) -> list[TraceRequest]:
    found = []
    for index in range(min(requests, len(trace))):
        blocks = trace.blocks[trace.starts[index] : trace.starts[index + 1]].astype(np.int64)
        tenant = int(blocks[min(1, len(blocks) - 1)]) % TENANTS if len(blocks) else 0
        found.append(
            TraceRequest(
                float(trace.times[index]),
                f"tenant {tenant}",
                blocks + tenant * _APART,
                int(trace.prompt_tokens[index]),
            )
        )
    return found


def _flood(calm: list[TraceRequest]) -> list[TraceRequest]:
    random = np.random.default_rng(0)
    times = np.sort(random.uniform(calm[0].time_seconds, calm[-1].time_seconds, TIMES * len(calm)))
    lengths = [len(request.blocks) for request in calm]
    found, first = [], TENANTS * _APART
    for time_seconds in times.tolist():
        length = int(random.choice(lengths))
        blocks = np.arange(first, first + length, dtype=np.int64)
        found.append(TraceRequest(time_seconds, FLOOD, blocks, length))
        first += length
    return found
