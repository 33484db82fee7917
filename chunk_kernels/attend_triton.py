"""Launching the Triton kernel of the two-phase attention on CUDA and ROCm devices."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvtrie.chunk_kernels.attend_kernel import attend_items
from kvtrie.chunk_kernels.launch_plan import LaunchPlan
from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.quantise import StoredLayer
from kvtrie.chunk_kernels.variant import PLAIN, Variant


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

    Raises:
        InputError: slopes or sinks that are not this query's.
    """
    return attend_stored(query, pool.keys(layer), pool.values(layer), launch, scale, variant)


def attend_stored(
    query: Tensor,
    keys: StoredLayer,
    values: StoredLayer,
    launch: LaunchPlan,
    scale: float,
    variant: Variant = PLAIN,
) -> tuple[Tensor, Tensor]:
    """As `attend_triton`, over one layer's keys and values wherever they are stored."""
    # 1. Outputs, and room for partials.
    query = query.contiguous()
    rows, q_heads, key_dim = query.shape
    variant.check_heads(q_heads, query.device)
    kv_heads, _, chunk_tokens, value_dim = values.elements.shape
    out = torch.empty(rows, q_heads, value_dim, dtype=query.dtype, device=query.device)
    lse = torch.empty(rows, q_heads, dtype=torch.float32, device=query.device)
    partials = max(1, launch.sizes.partials)
    partial_out = torch.empty(partials, value_dim, dtype=torch.float32, device=query.device)
    partial_lse = torch.empty(partials, dtype=torch.float32, device=query.device)
    none = partial_lse  # passed for pointers that the variant does not read
    # 2. The two launches: items that store partials, then items that finish rows.
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
            none if keys.scale is None else keys.scale,
            none if values.scale is None else values.scale,
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
            keys.elements.stride(0),
            values.elements.stride(0),
            0 if keys.scale is None else keys.scale.stride(0),
            STORES_PARTIAL=stores_partial,
            KV_HEADS=kv_heads,
            GROUP=q_heads // kv_heads,
            CHUNK=chunk_tokens,
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
            # Not an option of AMD's backend.
            **(
                {} if tiling.max_registers is None or torch.version.hip else {"maxnreg": tiling.max_registers}
            ),
        )
    return out, lse
