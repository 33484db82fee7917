"""Replaying a trace through a real `PrefixTree`: the tree that serves, without KV.

A block is a chunk of one "token", its number. Each request is judged by the longest prefix that is there when it
arrives; then its path is used, tail to head, what is missing is stored, and the policy evicts down to the
capacity. A request may overflow the capacity until it ends, when its own tail may be evicted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kvtrie.api.trace.eviction_ages import EvictionAges
from kvtrie.api.trace.trace import Ints, Trace
from kvtrie.prefix_tree import EvictionPolicy, Namespace, PrefixTree, Root, Tier
from kvtrie.prefix_tree.keys import TOKEN_BYTES

_NO_LIMIT = 1 << 60
"""The tier's own capacity: the replay keeps the limit, because requests may overflow it for a while."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayResult:
    """One trace under one policy at one capacity."""

    trace: Trace
    policy: str
    capacity_blocks: int
    matched: Ints
    """Blocks of each request's path that were cached when it arrived, `[requests]`."""
    ages: EvictionAges
    seconds: float
    """Wall time of the replay."""

    def hit_ratio_blocks(self, tenant: int | None = None) -> float:
        """Blocks served over blocks asked for, of one tenant (by index) or all."""
        return self._ratio(self.trace.served_blocks(self.matched), self.trace.asked_blocks, tenant)

    def hit_ratio_tokens(self, tenant: int | None = None) -> float:
        """Prompt tokens served over prompt tokens."""
        return self._ratio(self.trace.served_tokens(self.matched), self.trace.asked_tokens(), tenant)

    def _ratio(self, served: Ints, asked: Ints, tenant: int | None) -> float:
        if tenant is not None:
            mine = self.trace.tenant_of == tenant
            served, asked = served[mine], asked[mine]
        return float(served.sum() / max(1, asked.sum()))


def replay(
    trace: Trace,
    capacity_blocks: int,
    policy: EvictionPolicy,
    name: str = "",
    *,
    shares: Mapping[str, int] | None = None,
    before_request: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReplayResult:
    """Replays `trace` with room for `capacity_blocks` blocks.

    Args:
        policy: a fresh one; its order is the tier's.
        name: of the policy, for the result.
        shares: blocks that each named tenant keeps while others have some to give; see `Tier`.
        before_request: is called with the index of each request before it is matched.
        progress: is called now and then with the number of requests replayed since.
    """
    started, now = time.perf_counter(), 0.0
    kept = {scope_of(tenant): blocks for tenant, blocks in (shares or {}).items()}
    tier = Tier("device", _NO_LIMIT, policy, shares=kept)
    tree = PrefixTree(1, [tier], clock=lambda: now, steady=lambda: now, tombstones_per_scope=0)
    roots = _roots(tree, trace)
    starts, times = trace.starts.tolist(), trace.times.tolist()
    data, numbers = trace.blocks.tobytes(), trace.blocks
    matched, ages, shown = np.zeros(len(trace), np.int64), EvictionAges(), 0
    for index, now in enumerate(times):
        start, end = starts[index], starts[index + 1]
        if before_request is not None:
            before_request(index)
        tokens = data[start * TOKEN_BYTES : end * TOKEN_BYTES]
        match = tree.match(roots[index], tokens)
        matched[index] = have = len(match.path)
        lease = tree.lease(match)
        if start + have < end:
            stored = tree.insert_path(match, tokens, 0, numbers[start + have : end].tolist(), 1)
            tree.extend(lease, stored[-1])
        tree.release(lease)
        if tier.used_bytes > capacity_blocks:
            ages.add(tree.evict(0, tier.used_bytes - capacity_blocks), now)
        if progress is not None and index - shown >= 64:
            progress(index - shown)
            shown = index
    if tier.policy_error is not None:
        # A server goes on with LRU; what is measured here must be the policy that was asked for.
        raise tier.policy_error
    if progress is not None:
        progress(len(times) - shown)
    return ReplayResult(trace, name, capacity_blocks, matched, ages, time.perf_counter() - started)


def scope_of(tenant: str) -> str:
    """The scope that a tenant of a trace has in the replay's tree."""
    return f"tenant:{tenant}"


def _roots(tree: PrefixTree, trace: Trace) -> list[Root]:
    """Each request's root: that of the first tenant with its first block.

    Ids are prefixes, so tenants that share a first block share the path, which is charged to the first of them.
    """
    of_tenant = [tree.root(Namespace(scope_of(tenant), chunk_tokens=1)) for tenant in trace.tenants]
    homes: dict[int, Root] = {}
    roots = []
    for start, end, tenant in zip(trace.starts, trace.starts[1:], trace.tenant_of):
        first = int(trace.blocks[start]) if start < end else -1
        roots.append(homes.setdefault(first, of_tenant[tenant]))
    return roots
