"""SGLang's `RadixCache`, without pools or GPU: match, insert, evict. Wants the package alone
(`pip install --no-deps sglang==0.5.23`, and torch)."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.measure import median_seconds
from bench.peers.stubs import stubbed
from kvtrie.prefix_tree.keys import TokenArray

_UNUSED = (
    *("configs", "distributed", "layers", "mem_cache.allocator", "mem_cache.memory_pool"),
    *("mem_cache.memory_pool_host", "model_executor", "observability"),
)
"""Modules below `sglang.srt` that the tree imports for types and metrics only."""
_PAGE_TOKENS = 64


class _Allocator:
    """Takes freed slots and forgets them."""

    device = "cpu"

    def free_segment(self, value: object, start_pos: int = 0) -> None:
        """What eviction calls."""

    def free(self, value: object) -> None:
        """The same, in other versions."""


def run(prompts: Sequence[TokenArray], leaves: Sequence[TokenArray]) -> dict[str, float]:
    """Medians in microseconds, with `leaves` stored beside `prompts`; empty where SGLang is not there."""
    try:
        import torch

        radix, base = _load()
    except ImportError as error:
        print(f"skipped sglang: {error}")
        return {}
    tree = radix.RadixCache.create_simulated(mock_allocator=_Allocator(), page_size=_PAGE_TOKENS)
    slots = torch.arange(max(map(len, prompts)))

    def key(tokens: TokenArray) -> Any:
        return radix.RadixKey(token_ids=array("q", tokens.tolist()))

    def insert(tokens: TokenArray) -> None:
        tree.insert(base.InsertParams(key=key(tokens), value=slots[: len(tokens)]))

    def match(tokens: TokenArray) -> Any:
        return tree.match_prefix(base.MatchPrefixParams(key=key(tokens)))

    for leaf in leaves:
        insert(leaf)
    insert_seconds = median_seconds(insert, prompts)
    assert match(prompts[0]).device_prefix_len == len(prompts[0]), "gate: what was stored is matched"
    match_seconds = median_seconds(match, prompts)
    evict_seconds = []
    for _ in range(5):
        start = time.perf_counter()
        tree.evict(base.EvictParams(num_tokens=_PAGE_TOKENS))
        evict_seconds.append(time.perf_counter() - start)
    return {
        "sglang_match_2304_tokens_us": match_seconds * 1e6,
        "sglang_insert_2304_tokens_us": insert_seconds * 1e6,
        "sglang_evict_one_of_50000_leaves_us": median(evict_seconds) * 1e6,
    }


def _load() -> tuple[Any, Any]:
    """The modules `radix_cache` and `base_prefix_cache`."""
    with stubbed("sglang", {"sglang.kernels"} | {f"sglang.srt.{name}" for name in _UNUSED}) as stubs:
        while True:
            try:
                from sglang.srt.mem_cache import base_prefix_cache, radix_cache

                return radix_cache, base_prefix_cache
            except ModuleNotFoundError as missing:
                name = (missing.name or "").partition(".")[0]
                if name in ("", "sglang") or name in stubs:
                    raise
                stubs.add(name)
