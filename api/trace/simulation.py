"""Results of `kvtrie trace simulate`: one row per trace, policy, capacity and tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtrie.api.trace.capacity import Capacity
from kvtrie.api.trace.eviction_ages import log2_histogram
from kvtrie.api.trace.policies import fresh_policy
from kvtrie.api.trace.replay import ReplayResult, replay
from kvtrie.api.trace.reuse import NEVER, ReuseDistances, reuse_distances
from kvtrie.api.trace.trace import Trace

CURVE_POINTS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one capacity."""

    trace: str
    tenant: str | None
    """Tenant of the row; None for all tenants."""
    policy: str
    capacity: str
    """The capacity as the user wrote it."""
    capacity_fraction: float
    """The capacity as a fraction of the trace's unique blocks."""
    capacity_blocks: int
    capacity_bytes: int | None
    """The capacity in bytes; None without a model's `config.json`."""
    requests: int
    asked_blocks: int
    hit_ratio_blocks: float
    hit_ratio_tokens: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """Counts per policy and capacity."""

    trace: str
    policy: str
    capacity: str
    evictions: int
    lifetime_seconds: tuple[int, ...]
    """Evicted blocks by time since they were stored: bin 0 is under 1 s, bin i is 2^(i-1) to 2^i seconds."""
    idle_seconds: tuple[int, ...]
    """Evicted blocks by time since they were last used, in the same bins."""
    seconds: float
    """Wall time of the replay."""


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """Facts of a trace that do not depend on a policy."""

    trace: str
    requests: int
    tenants: int
    span_seconds: float
    block_tokens: int
    block_uses: int
    unique_blocks: int
    prompt_tokens: int
    output_tokens: int
    infinite_hit_ratio: float
    """Blocks served by a cache that forgets nothing."""
    reuse_distance_blocks: tuple[int, ...]
    """Reused blocks by how many were used more recently: bin 0 is none, bin i is 2^(i-1) to 2^i."""
    reuse_wait_seconds: tuple[int, ...]
    """Reused blocks by time since their last use, in the bins of `Replayed`."""
    first_uses: int
    lru_curve: tuple[tuple[int, float], ...]
    """(capacity in blocks, hit ratio in blocks) of leaf LRU, from reuse distances."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Everything about some traces, policies and capacities."""

    facts: tuple[TraceFacts, ...]
    rows: tuple[Row, ...]
    replayed: tuple[Replayed, ...]


def simulate(
    trace: Trace,
    policies: Sequence[str],
    capacities: Sequence[Capacity],
    *,
    token_bytes: int | None = None,
    per_tenant: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Replays one trace under every policy at every capacity.

    Args:
        token_bytes: KV of one token; needed for capacities in bytes.
        per_tenant: also a row for each tenant.
        progress: is called now and then with the number of requests replayed since, over all replays.

    Raises:
        InputError: no such policy, or a capacity that means nothing for this trace.
    """
    block_bytes = None if token_bytes is None else token_bytes * trace.block_tokens
    sizes = [capacity.in_blocks(trace.unique_blocks, block_bytes) for capacity in capacities]
    rows, replayed = [], []
    for name in policies:
        for capacity, blocks in zip(capacities, sizes):
            policy, before_request = fresh_policy(name, trace, blocks)
            result = replay(trace, blocks, policy, name, before_request=before_request, progress=progress)
            of_whom: list[int | None] = [None]
            if per_tenant:
                asked = np.bincount(trace.tenant_of, trace.asked_blocks, len(trace.tenants))
                of_whom += np.argsort(-asked, kind="stable").tolist()
            rows += [_row(result, capacity, block_bytes, tenant) for tenant in of_whom]
            replayed.append(_replayed(result, capacity))
    return Simulation((trace_facts(reuse_distances(trace)),), tuple(rows), tuple(replayed))


def joined(parts: Sequence[Simulation]) -> Simulation:
    """Several traces' simulations as one."""
    return Simulation(
        tuple(fact for part in parts for fact in part.facts),
        tuple(row for part in parts for row in part.rows),
        tuple(one for part in parts for one in part.replayed),
    )


def trace_facts(reuse: ReuseDistances) -> TraceFacts:
    """Facts of a trace that do not depend on a policy."""
    trace, asked = reuse.trace, reuse.asked()
    distances = reuse.distances[asked]
    again = distances != NEVER
    points = np.unique(np.geomspace(1, trace.unique_blocks, CURVE_POINTS).astype(int)).tolist()
    return TraceFacts(
        trace=trace.name,
        requests=len(trace),
        tenants=len(trace.tenants),
        span_seconds=float(trace.times[-1] - trace.times[0]),
        block_tokens=trace.block_tokens,
        block_uses=len(distances),
        unique_blocks=trace.unique_blocks,
        prompt_tokens=int(trace.prompt_tokens.sum()),
        output_tokens=int(trace.output_tokens.sum()),
        infinite_hit_ratio=float(again.sum() / max(1, len(distances))),
        reuse_distance_blocks=_counts(log2_histogram(distances[again].astype(np.float64))),
        reuse_wait_seconds=_counts(log2_histogram(reuse.waits[asked][again])),
        first_uses=int((~again).sum()),
        lru_curve=tuple(zip(points, reuse.hit_ratios(points))),
    )


def _row(result: ReplayResult, capacity: Capacity, block_bytes: int | None, tenant: int | None) -> Row:
    trace = result.trace
    mine = slice(None) if tenant is None else trace.tenant_of == tenant
    return Row(
        trace=trace.name,
        tenant=None if tenant is None else trace.tenants[tenant],
        policy=result.policy,
        capacity=capacity.text,
        capacity_fraction=result.capacity_blocks / trace.unique_blocks,
        capacity_blocks=result.capacity_blocks,
        capacity_bytes=None if block_bytes is None else result.capacity_blocks * block_bytes,
        requests=len(trace.tenant_of[mine]),
        asked_blocks=int(trace.asked_blocks[mine].sum()),
        hit_ratio_blocks=result.hit_ratio_blocks(tenant),
        hit_ratio_tokens=result.hit_ratio_tokens(tenant),
    )


def _replayed(result: ReplayResult, capacity: Capacity) -> Replayed:
    result.ages.settle()
    return Replayed(
        trace=result.trace.name,
        policy=result.policy,
        capacity=capacity.text,
        evictions=result.ages.evictions,
        lifetime_seconds=_counts(result.ages.lifetimes),
        idle_seconds=_counts(result.ages.idle),
        seconds=result.seconds,
    )


def _counts(histogram: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, ...]:
    return tuple(histogram.tolist())
