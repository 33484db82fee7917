"""`write_kv`: the one way new keys and values enter a pool, whatever writes them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.quantise import LARGEST


def write_kv(pool: ChunkPool, layer: int, write_at: Tensor, key: Tensor, value: Tensor) -> None:
    """Puts new tokens' keys and values into their places, quantised where the pool is.

    Args:
        pool: holds the KV.
        layer: which layer's keys and values these are.
        write_at: int64 `[rows]`, slot * chunk_tokens + offset within the chunk; negative leaves a row out.
        key: `[rows, kv_heads, key_dim]` in the pool's dtype.
        value: `[rows, kv_heads, value_dim]`.

    Raises:
        InputError: wrong dtype, device or shape.
    """
    if pool.device.type == "cpu":
        pool.write(layer, write_at, key, value)
    else:
        # Triton launches on the current device, which need not be the pool's.
        with torch.cuda.device_of(key):  # type: ignore[no-untyped-call]
            write_triton(pool, layer, write_at, key, value)


def write_triton(pool: ChunkPool, layer: int, write_at: Tensor, key: Tensor, value: Tensor) -> None:
    """As `write_kv`, by the kernel: on CUDA and ROCm devices, and in Triton's interpreter."""
    # Imported where it is needed: Triton is Linux only, and the CPU path does without.
    import triton

    from kvtrie.chunk_kernels.write_kernel import write_kv as kernel

    pool.check_new(write_at, key, value)
    if key.shape[0] == 0:
        return
    key, value = (new if new.stride(-1) == 1 else new.contiguous() for new in (key, value))
    shape = pool.shape
    keys, values = pool.keys(layer), pool.values(layer)
    kernel[key.shape[0], shape.kv_heads](
        key,
        value,
        keys.elements,
        values.elements,
        # Where nothing is quantised no scale is read or written: any pointer will do.
        write_at if keys.scale is None else keys.scale,
        write_at if values.scale is None else values.scale,
        write_at,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        keys.elements.stride(0),
        values.elements.stride(0),
        0 if keys.scale is None else keys.scale.stride(0),
        KEY_DIM=shape.key_dim,
        VALUE_DIM=shape.value_dim,
        BLOCK_KEY_DIM=triton.next_power_of_2(shape.key_dim),
        BLOCK_VALUE_DIM=triton.next_power_of_2(shape.value_dim),
        QUANTISED=shape.is_quantised,
        LARGEST=LARGEST.get(shape.kv_format, 0.0),
        num_warps=1,
    )
