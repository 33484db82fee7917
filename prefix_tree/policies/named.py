"""Policies by name, for configuration and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.policies.arc import AdaptiveReplacement
from kvtrie.prefix_tree.policies.gdsf import GreedyDualSizeFrequency, RecomputeSeconds
from kvtrie.prefix_tree.policies.learned_return import LearnedReturn
from kvtrie.prefix_tree.policies.lfu import LeastFrequentlyUsed
from kvtrie.prefix_tree.policies.lfu_aging import LfuWithAging
from kvtrie.prefix_tree.policies.lru import LeastRecentlyUsed
from kvtrie.prefix_tree.policies.priority import PriorityWithExpiry
from kvtrie.prefix_tree.policies.s3_fifo import S3Fifo
from kvtrie.prefix_tree.policies.slru import SegmentedLru
from kvtrie.prefix_tree.policies.two_queue import TwoQueue
from kvtrie.prefix_tree.policy import EvictionPolicy

ATTENTION_SHARE = 0.002
"""Cost of attending to one more chunk above, as a share of a chunk's own prefill: 64 tokens through a model of 8B
parameters take 1.0e12 operations, their attention to 64 earlier tokens 2.1e9."""


def _prefix_aware(
    per_chunk: float = 1.0, per_chunk_above: float = ATTENTION_SHARE
) -> GreedyDualSizeFrequency:
    return GreedyDualSizeFrequency(RecomputeSeconds(per_chunk, per_chunk_above))


POLICIES: Mapping[str, Callable[..., EvictionPolicy]] = MappingProxyType(
    {
        "2q": TwoQueue,
        "arc": AdaptiveReplacement,
        "gdsf": GreedyDualSizeFrequency,
        "learned": LearnedReturn,
        "lfu": LeastFrequentlyUsed,
        "lfuda": LfuWithAging,
        "lru": LeastRecentlyUsed,
        "pgdsf": _prefix_aware,
        "priority": PriorityWithExpiry,
        "s3fifo": S3Fifo,
        "slru": SegmentedLru,
    }
)
"""The constructor of each named policy."""

_GHOSTS_PER_CHUNK = MappingProxyType({"2q": 0.5, "arc": 1.0, "s3fifo": 1.0})
"""Ghosts (remembered keys of evicted chunks) per chunk of the tier's capacity, for the policies that have any."""


def policy_named(name: str, *, capacity_chunks: int = 16_384, **parameters: Any) -> EvictionPolicy:
    """A new policy.

    Args:
        name: one of `POLICIES`.
        capacity_chunks: about how many chunks the tier can hold; sets how many evicted keys are remembered.
        parameters: of the policy's constructor.

    Raises:
        InputError: there is no policy of that name, or it does not take these parameters.
    """
    make = POLICIES.get(name)
    if make is None:
        raise InputError(f"no eviction policy is named {name!r}; there are {', '.join(POLICIES)}")
    if name in _GHOSTS_PER_CHUNK:
        parameters.setdefault("ghosts", max(1, round(_GHOSTS_PER_CHUNK[name] * capacity_chunks)))
    try:
        return make(**parameters)
    except TypeError as error:
        raise InputError(f"eviction policy {name!r}: {error}") from None
