"""`attend`: the one entry to attention, whatever computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrie.chunk_kernels.launch_plan import launch_plan
from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.step import Step
from kvtrie.chunk_kernels.tilings import cost_model_for, pool_formats, target_of, tiling_for, tilings_for
from kvtrie.chunk_kernels.two_phase import attend_two_phase
from kvtrie.chunk_kernels.variant import PLAIN, Variant
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.shape import ChunkShape


def check_served(shape: ChunkShape, device: torch.device) -> None:
    """Whether `attend` serves pools of this shape on this device.

    Raises:
        InputError: the kernels have no tiling for heads that wide in this dtype, or not for this KV format.
    """
    if device.type == "cpu":
        return
    target = target_of(device)
    tiling_for(target, shape.dtype, max(shape.key_dim, shape.value_dim), pairs=1)
    if shape.kv_format not in (formats := pool_formats(target)):
        raise InputError(
            f"kv_format={shape.kv_format!r} does not ship for {target}; use one of {', '.join(formats)}"
        )


def attend(
    query: Tensor, pool: ChunkPool, layer: int, step: Step, scale: float, variant: Variant = PLAIN
) -> tuple[Tensor, Tensor]:
    """Attention of a step's rows over their paths in the pool; the new tokens' KV is in the pool already.

    Args:
        query: `[rows, q_heads, key_dim]`, rows in the order of the sequences given to `prepare_step`; any
            mixture of decode rows and prefill rows.
        pool: the pool the step was prepared over.
        layer: which layer's keys and values to read.
        step: from `prepare_step`.
        scale: factor on the scores, usually key_dim ** -0.5.
        variant: this layer's window, softcap, ALiBi slopes and sinks; layers of a step may differ.

    Returns:
        out `[rows, q_heads, value_dim]` in the query's dtype, and natural-log lse `[rows, q_heads]` in fp32, sinks
        included.

    Raises:
        InputError: the query does not fit the pool or the step, the variant the query, or the step was prepared
            over another pool.
    """
    shape = pool.shape
    if step.pool is not pool:
        raise InputError(
            "the step was prepared over another pool, whose slots are not this one's; prepare it again"
        )
    if not 0 <= layer < shape.layers:
        raise InputError(f"layer {layer} is outside the pool's {shape.layers} layers")
    if query.dim() != 3 or query.shape[0] != step.rows or query.shape[2] != shape.key_dim:
        raise InputError(
            f"query {tuple(query.shape)} does not fit {step.rows} rows of key dim {shape.key_dim}"
        )
    if query.shape[1] % shape.kv_heads:
        raise InputError(f"{query.shape[1]} query heads are not a multiple of {shape.kv_heads} KV heads")
    if query.dtype != pool.dtype or query.device != pool.k.device:
        raise InputError(
            f"query is {query.dtype} on {query.device}, the pool is {pool.dtype} on {pool.k.device}"
        )
    if pool.device.type == "cpu":
        return attend_two_phase(query, pool, layer, step, scale, variant)
    # Imported where it is needed: Triton is Linux only, and the CPU path does without.
    from kvtrie.chunk_kernels.attend_triton import attend_triton

    group = query.shape[1] // shape.kv_heads
    launch = launch_plan(step, group, tilings_for(step, group), cost_model_for(pool.device))
    # Triton launches on the current device, which need not be the pool's.
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        return attend_triton(query, pool, layer, launch, scale, variant)
