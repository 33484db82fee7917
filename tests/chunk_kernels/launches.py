"""Launching the attention kernel over any tensors, past what pools can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from kvtrie.chunk_kernels import Variant
from kvtrie.chunk_kernels.attend_kernel import attend_items
from kvtrie.chunk_kernels.launch_plan import LaunchPlan


@dataclass(frozen=True)
class Stored:
    """One layer's keys or values."""

    elements: torch.Tensor
    """`[kv_heads, slots, chunk, dim]`"""
    scale: torch.Tensor | None = None
    """fp32 `[kv_heads, slots, chunk]` of quantised elements."""


def launch_attend(
    query: torch.Tensor, keys: Stored, values: Stored, launch: LaunchPlan, scale: float, variant: Variant
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attend_triton`. Whatever the kernel does not write is NaN."""
    rows, q_heads, key_dim = query.shape
    kv_heads, _, chunk, value_dim = values.elements.shape

    def poisoned(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(sizes, float("nan"), dtype=dtype, device=query.device)

    out, lse = poisoned(rows, q_heads, value_dim, dtype=query.dtype), poisoned(rows, q_heads)
    partial_out, partial_lse = (
        poisoned(launch.sizes.partials + 1, value_dim),
        poisoned(launch.sizes.partials + 1),
    )
    for stores_partial, items, count, tiling in (
        (True, launch.items_partial, launch.sizes.partial_items, launch.tilings.partial),
        (False, launch.items_finish, launch.sizes.finish_items, launch.tilings.finish),
    ):
        if count == 0:
            continue
        attend_items[count, kv_heads](
            query,
            keys.elements,
            values.elements,
            lse if keys.scale is None else keys.scale,
            lse if values.scale is None else values.scale,
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
            lse if variant.slopes is None else variant.slopes,
            lse if variant.sinks is None else variant.sinks,
            scale,
            variant.softcap or 0.0,
            variant.window or 0,
            keys.elements.stride(0),
            values.elements.stride(0),
            0 if keys.scale is None else keys.scale.stride(0),
            STORES_PARTIAL=stores_partial,
            KV_HEADS=kv_heads,
            GROUP=q_heads // kv_heads,
            CHUNK=chunk,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            BLOCK_KEY_DIM=max(16, triton.next_power_of_2(key_dim)),
            BLOCK_VALUE_DIM=max(16, triton.next_power_of_2(value_dim)),
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            HAS_WINDOW=variant.window is not None,
            HAS_SOFTCAP=variant.softcap is not None,
            HAS_ALIBI=variant.slopes is not None,
            HAS_SINKS=variant.sinks is not None,
            QUANTISED=keys.scale is not None,
            PRECISION="ieee" if torch.version.hip or query.dtype != torch.float32 else "tf32x3",
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    return out, lse
