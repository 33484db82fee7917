"""The Triton kernel that puts new keys and values into a pool, and quantises them on the way.

Reference: `ChunkPool.write` and `kvtrie.chunk_kernels.quantise`, which give the same bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write_kv(
    p_new_key,  # [rows, KV_HEADS, KEY_DIM], last dimension contiguous
    p_new_value,  # [rows, KV_HEADS, VALUE_DIM]
    p_key,  # [KV_HEADS, slots, CHUNK, KEY_DIM]
    p_value,
    p_key_scale,  # fp32 [KV_HEADS, slots, CHUNK], where QUANTISED
    p_value_scale,
    p_write_at,  # int64 [rows]: slot * CHUNK + offset; negative: the row is left out
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    pool_key_head_stride,
    pool_value_head_stride,
    scale_head_stride,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    QUANTISED: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Scatters one row's new keys and values of one KV head into its slot. Grid `(rows, kv_heads)`.

    `LARGEST` is the element that a vector's largest becomes: 127 into int8, 448 into fp8.
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1).to(tl.int64)
    place = tl.load(p_write_at + i_row)
    # A captured graph has lanes for more rows than the step of the moment.
    if place < 0:
        return
    o_key = tl.arange(0, BLOCK_KEY_DIM)
    o_value = tl.arange(0, BLOCK_VALUE_DIM)
    key = tl.load(
        p_new_key + i_row * key_row_stride + i_head * key_head_stride + o_key, mask=o_key < KEY_DIM, other=0.0
    )
    value = tl.load(
        p_new_value + i_row * value_row_stride + i_head * value_head_stride + o_value,
        mask=o_value < VALUE_DIM,
        other=0.0,
    )
    if QUANTISED:
        o_scale = i_head * scale_head_stride + place
        key, key_scale = quantised(key, LARGEST, p_key.dtype.element_ty == tl.int8)
        value, value_scale = quantised(value, LARGEST, p_value.dtype.element_ty == tl.int8)
        tl.store(p_key_scale + o_scale, key_scale)
        tl.store(p_value_scale + o_scale, value_scale)
    tl.store(
        p_key + i_head * pool_key_head_stride + place * KEY_DIM + o_key,
        key.to(p_key.dtype.element_ty),
        mask=o_key < KEY_DIM,
    )
    tl.store(
        p_value + i_head * pool_value_head_stride + place * VALUE_DIM + o_value,
        value.to(p_value.dtype.element_ty),
        mask=o_value < VALUE_DIM,
    )


@triton.jit
def quantised(vector, LARGEST: tl.constexpr, TO_INTEGERS: tl.constexpr):
    """A vector's elements, still in fp32, and its scale: `quantise.quantise`, step by step."""
    exact = vector.to(tl.float32)
    # tl.max passes over NaN, so NaN is made infinity first: both must show in the scale.
    largest = tl.max(tl.where(exact == exact, tl.abs(exact), float("inf")), 0)
    scale = tl.div_rn(largest, LARGEST)
    scale = tl.where(scale < 1.1754943508222875e-38, 0.0, scale)
    has_elements = (scale > 0.0) & (scale < float("inf"))
    ratio = tl.div_rn(exact, tl.where(has_elements, scale, 1.0))
    ratio = tl.where(has_elements, ratio, 0.0)
    if TO_INTEGERS:
        # To the nearest integer, ties to even: fp32 has none but integers from 2^23 on.
        ratio = (ratio + 12582912.0) - 12582912.0
    return ratio, scale
