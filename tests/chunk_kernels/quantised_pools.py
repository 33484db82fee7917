"""Quantised pools filled through `ChunkPool.write`, and the raw pool that their bytes stand for."""

from __future__ import annotations

import pytest
import torch

from kvtrie.chunk_kernels import ChunkPool
from kvtrie.chunk_kernels.quantise import check_format
from kvtrie.prefix_tree import ChunkShape, InputError
from tests.chunk_kernels.forests import CHUNK


def needs_fp8(kv_format: str, device: str) -> None:
    """Skips a test of fp8 on a GPU that has none."""
    if kv_format == "fp8" and device == "cuda":
        try:
            check_format(kv_format, torch.device(device))
        except InputError as error:
            pytest.skip(str(error))


def quantised_pool(
    kv_format: str,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    dtype: str = "float32",
    *,
    slots: int = 96,
    device: str = "cpu",
    value_spread: float = 1.0,
) -> ChunkPool:
    """A pool of two layers full of quantised noise; vectors differ in size, so that scales do."""
    needs_fp8(kv_format, device)
    pool = ChunkPool(ChunkShape(2, kv_heads, CHUNK, key_dim, value_dim, dtype, kv_format), slots, device)
    tokens = slots * CHUNK
    for layer in range(2):
        size = torch.exp(torch.randn(tokens, kv_heads, 1, device=device))
        key = torch.randn(tokens, kv_heads, key_dim, device=device)
        value = torch.randn(tokens, kv_heads, value_dim, device=device) * size * value_spread
        pool.write(layer, torch.arange(tokens, device=device), key.to(pool.dtype), value.to(pool.dtype))
    return pool


def as_raw(pool: ChunkPool) -> ChunkPool:
    """A raw fp32 pool of what `pool`'s stored bytes stand for, computed apart from the code that reads them."""
    shape = pool.shape
    sizes = (shape.layers, shape.kv_heads, shape.chunk_tokens, shape.key_dim, shape.value_dim)
    raw = ChunkPool(ChunkShape(*sizes, "float32"), pool.slots, pool.device)
    assert pool.k_scale is not None
    assert pool.v_scale is not None
    raw.k.copy_(torch.einsum("lhstd,lhst->lhstd", pool.k.double(), pool.k_scale.double()))
    raw.v.copy_(torch.einsum("lhstd,lhst->lhstd", pool.v.double(), pool.v_scale.double()))
    return raw
