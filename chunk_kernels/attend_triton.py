"""Launching the Triton kernels on CUDA and ROCm devices.

`attend` goes through `attend_triton`; `write_triton` is proved, and the pool still writes with torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kvtrie.chunk_kernels.attend_kernel import attend_items, write_kv
from kvtrie.chunk_kernels.launch_plan import LaunchPlan
from kvtrie.chunk_kernels.pool import ChunkPool


@dataclass(frozen=True, slots=True)
class Variant:
    """What a layer's attention does besides softmax over all earlier keys."""

    window: int | None = None
    """A query sees the last `window` positions, its own included."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""
    slopes: Tensor | None = None
    """ALiBi slopes, fp32 `[q_heads]`."""
    sinks: Tensor | None = None
    """Logit of each head's attention sink, fp32 `[q_heads]`."""


PLAIN = Variant()


def attend_triton(
    query: Tensor, pool: ChunkPool, layer: int, launch: LaunchPlan, scale: float, variant: Variant = PLAIN
) -> tuple[Tensor, Tensor]:
    """Attention of a step's rows, by the kernel.

    Args:
        query: `[rows, q_heads, key_dim]`, contiguous, rows in the caller's order.
        pool: the pool the plan was made over.
        layer: which layer's keys and values to read.
        launch: from `launch_plan`.
        scale: factor on the scores.
        variant: window, softcap, ALiBi, sinks.

    Returns:
        out `[rows, q_heads, value_dim]` in the query's dtype, natural-log lse `[rows, q_heads]` in fp32.
    """
    shape = pool.shape
    query = query.contiguous()
    rows, q_heads, _ = query.shape
    keys, values = pool.k[layer], pool.v[layer]
    out = torch.empty(rows, q_heads, shape.value_dim, dtype=query.dtype, device=query.device)
    lse = torch.empty(rows, q_heads, dtype=torch.float32, device=query.device)
    partial_out = torch.empty(
        max(1, launch.sizes.partials), shape.value_dim, dtype=torch.float32, device=query.device
    )
    partial_lse = torch.empty(max(1, launch.sizes.partials), dtype=torch.float32, device=query.device)
    none = partial_lse  # stands in for pointers the variant does not read
    for stores_partial, items, count, cut in (
        (True, launch.items_partial, launch.sizes.partial_items, launch.tilings.partial),
        (False, launch.items_finish, launch.sizes.finish_items, launch.tilings.finish),
    ):
        if count == 0:
            continue
        attend_items[count, shape.kv_heads](
            query,
            keys,
            values,
            none,
            none,
            out,
            lse,
            partial_out,
            partial_lse,
            items,
            launch.counts,
            launch.slots,
            launch.positions,
            launch.order,
            launch.merge_index,
            launch.merges,
            none if variant.slopes is None else variant.slopes,
            none if variant.sinks is None else variant.sinks,
            scale,
            0.0 if variant.softcap is None else variant.softcap,
            0 if variant.window is None else variant.window,
            keys.stride(0),
            values.stride(0),
            0,
            STORES_PARTIAL=stores_partial,
            KV_HEADS=shape.kv_heads,
            GROUP=q_heads // shape.kv_heads,
            CHUNK=shape.chunk_tokens,
            KEY_DIM=shape.key_dim,
            VALUE_DIM=shape.value_dim,
            BLOCK_KEY_DIM=max(16, triton.next_power_of_2(shape.key_dim)),
            BLOCK_VALUE_DIM=max(16, triton.next_power_of_2(shape.value_dim)),
            BLOCK_M=cut.block_m,
            BLOCK_N=cut.block_n,
            HAS_WINDOW=variant.window is not None,
            HAS_SOFTCAP=variant.softcap is not None,
            HAS_ALIBI=variant.slopes is not None,
            HAS_SINKS=variant.sinks is not None,
            QUANTISED=False,
            PRECISION="ieee" if torch.version.hip or query.dtype != torch.float32 else "tf32x3",
            num_warps=cut.num_warps,
            num_stages=cut.num_stages,
            # Not an option of AMD's backend.
            **({} if cut.max_registers is None or torch.version.hip else {"maxnreg": cut.max_registers}),
        )
    return out, lse


def write_triton(pool: ChunkPool, layer: int, write_at: Tensor, key: Tensor, value: Tensor) -> None:
    """Puts new tokens' keys `[rows, kv_heads, key_dim]` and values into their places, as `ChunkPool.write`."""
    shape = pool.shape
    keys, values = pool.k[layer], pool.v[layer]
    write_kv[key.shape[0], shape.kv_heads](
        key,
        value,
        keys,
        values,
        write_at,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        keys.stride(0),
        values.stride(0),
        KEY_DIM=shape.key_dim,
        VALUE_DIM=shape.value_dim,
        BLOCK_KEY_DIM=triton.next_power_of_2(shape.key_dim),
        BLOCK_VALUE_DIM=triton.next_power_of_2(shape.value_dim),
        num_warps=1,
    )
