"""The Triton kernel of the two-phase attention: one program per work item and KV head.

Launched twice over the same code. `STORES_PARTIAL` items attend to a shared run, or to a piece of a long private
one, and leave (out, lse). The others finish rows: they attend to a private run (or to nothing), merge the partials
that were left for their rows in registers, and write the output. `launch_items.py` describes the arrays.

Reference: `kvtrie.chunk_kernels.reference`. Sources: ChunkAttention (arXiv 2402.15220) section 3.2 for the two
phases; FlashAttention-2 (arXiv 2307.08691) algorithm 1 for the online softmax, here in base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Places of the fields of `launch_items.Item` and `launch_items.Merge`: a kernel takes no other module's names.
ITEM_FIRST_ROW = tl.constexpr(0)
ITEM_ROWS = tl.constexpr(1)
ITEM_M_START = tl.constexpr(2)
ITEM_SLOTS_AT = tl.constexpr(3)
ITEM_FROM_TOKEN = tl.constexpr(4)
ITEM_END_TOKEN = tl.constexpr(5)
ITEM_START_POSITION = tl.constexpr(6)
ITEM_PARTIAL_AT = tl.constexpr(7)
ITEM_MERGES_AT = tl.constexpr(8)
ITEM_FIELDS = tl.constexpr(9)
MERGE_PARTIAL_AT = tl.constexpr(0)
MERGE_FIRST_ROW = tl.constexpr(1)
MERGE_ROWS = tl.constexpr(2)
MERGE_FIELDS = tl.constexpr(3)


@triton.jit
def attend_items(
    p_query,  # [rows, q_heads, KEY_DIM]
    p_key,  # [kv_heads, slots, CHUNK, KEY_DIM]
    p_value,  # [kv_heads, slots, CHUNK, VALUE_DIM]
    p_key_scale,  # fp32 [kv_heads, slots, CHUNK], where QUANTISED
    p_value_scale,
    p_out,  # [rows, q_heads, VALUE_DIM]
    p_lse,  # fp32 [rows, q_heads], natural logarithm
    p_partial_out,  # fp32 [partials, VALUE_DIM]
    p_partial_lse,  # fp32 [partials], base 2
    p_items,  # int32 [items, ITEM_FIELDS]
    p_counts,  # int32 [COUNTS]: items that store partials, items that finish, two unused
    p_slots,  # int32 [table]
    p_positions,  # int64 [rows], the caller's order
    p_order,  # int32 [rows]: the caller's row of each plan row
    p_merge_index,  # int32 [sequences, 2]: first merge, merges; an item has its entry in ITEM_MERGES_AT
    p_merges,  # int32 [merges, MERGE_FIELDS]
    p_slopes,  # fp32 [q_heads], where HAS_ALIBI
    p_sinks,  # fp32 [q_heads], where HAS_SINKS
    scale,
    softcap,
    window,
    kv_head_stride,  # elements of one KV head in p_key
    value_head_stride,
    scale_head_stride,
    STORES_PARTIAL: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    QUANTISED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    log2e: tl.constexpr = 1.4426950408889634
    # tf32x3 keeps several copies of its operands in registers, and every warp holds the whole query tile: keys
    # wider than 128 would spill. The query stays in the cache then, and comes with the key a few dims at a time.
    KEY_STEP: tl.constexpr = 32 if PRECISION == "tf32x3" and KEY_DIM > 128 else BLOCK_KEY_DIM  # noqa: N806
    dtype: tl.constexpr = p_query.dtype.element_ty
    # 1. This program's item and KV head.
    i_item = tl.program_id(0)
    i_head = tl.program_id(1)
    # The grid covers a captured graph's capacity; the plan of the moment may have fewer items.
    if i_item >= tl.load(p_counts + (0 if STORES_PARTIAL else 1)):
        return
    p_item = p_items + i_item * ITEM_FIELDS
    first_row = tl.load(p_item + ITEM_FIRST_ROW)
    rows = tl.load(p_item + ITEM_ROWS)
    m_start = tl.load(p_item + ITEM_M_START)
    slots_at = tl.load(p_item + ITEM_SLOTS_AT)
    from_token = tl.load(p_item + ITEM_FROM_TOKEN)
    end_token = tl.load(p_item + ITEM_END_TOKEN)
    start_position = tl.load(p_item + ITEM_START_POSITION)

    # 2. The tile: (row, group head) pairs, their positions and queries.
    o_m = m_start + tl.arange(0, BLOCK_M)
    row = first_row + o_m // GROUP
    head = i_head * GROUP + o_m % GROUP
    m_row = o_m < rows * GROUP
    caller_row = tl.load(p_order + row, mask=m_row, other=0).to(tl.int64)
    position = tl.load(p_positions + caller_row, mask=m_row, other=0).to(tl.int32)
    o_key = tl.arange(0, BLOCK_KEY_DIM)
    o_value = tl.arange(0, BLOCK_VALUE_DIM)
    m_key = o_key < KEY_DIM
    m_value = o_value < VALUE_DIM
    o_head = (caller_row * KV_HEADS * GROUP + head).to(tl.int64)
    if KEY_STEP == BLOCK_KEY_DIM:
        # [BLOCK_M, BLOCK_KEY_DIM]
        query = tl.load(
            p_query + o_head[:, None] * KEY_DIM + o_key[None, :],
            mask=m_row[:, None] & m_key[None, :],
            other=0.0,
        )

    # 3. Tokens of the run that some row of the tile can see.
    # Causality and the window cut whole blocks off both ends of the run.
    last = tl.max(tl.where(m_row, position, -1), 0) - start_position + 1
    end_token = tl.minimum(end_token, last)
    if HAS_WINDOW:
        lowest = tl.min(tl.where(m_row, position, 2147483647), 0) - window + 1 - start_position
        from_token = tl.maximum(from_token, lowest)

    # 4. Attend to them block by block, with an online softmax.
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE_DIM], tl.float32)
    if QUANTISED:
        unit = tl.full([], 0.0, tl.float32)
    p_key_head = p_key + i_head.to(tl.int64) * kv_head_stride
    p_value_head = p_value + i_head.to(tl.int64) * value_head_stride
    for start in range(from_token, end_token, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < end_token
        slot = tl.load(p_slots + slots_at + o_n // CHUNK, mask=m_n, other=0).to(tl.int64)
        o_token = slot * CHUNK + o_n % CHUNK
        if KEY_STEP == BLOCK_KEY_DIM:
            # [BLOCK_KEY_DIM, BLOCK_N]
            key = tl.load(
                p_key_head + o_token[None, :] * KEY_DIM + o_key[:, None],
                mask=m_key[:, None] & m_n[None, :],
                other=0.0,
            )
            scores = tl.dot(query, key.to(dtype), input_precision=PRECISION)
        else:
            scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for first_dim in range(0, KEY_DIM, KEY_STEP):
                o_step = first_dim + tl.arange(0, KEY_STEP)
                # [BLOCK_M, KEY_STEP]
                stretch = tl.load(
                    p_query + o_head[:, None] * KEY_DIM + o_step[None, :],
                    mask=m_row[:, None] & (o_step < KEY_DIM)[None, :],
                    other=0.0,
                )
                # [KEY_STEP, BLOCK_N]
                key = tl.load(
                    p_key_head + o_token[None, :] * KEY_DIM + o_step[:, None],
                    mask=(o_step < KEY_DIM)[:, None] & m_n[None, :],
                    other=0.0,
                )
                scores = tl.dot(stretch, key.to(dtype), scores, input_precision=PRECISION)
        scores *= scale
        if QUANTISED:
            o_scale = i_head.to(tl.int64) * scale_head_stride + o_token
            scores *= tl.load(p_key_scale + o_scale, mask=m_n, other=0.0)[None, :]
        if HAS_SOFTCAP:
            # tanh by exponentials: exact enough in fp32, and every target has exp2.
            scores = softcap * (1 - 2 / (tl.exp2(2 * log2e * scores / softcap) + 1))
        distance = position[:, None] - (start_position + o_n)[None, :]
        if HAS_ALIBI:
            slope = tl.load(p_slopes + head, mask=m_row, other=0.0)
            scores -= slope[:, None] * distance.to(tl.float32)
        m_seen = m_n[None, :] & (distance >= 0)
        if HAS_WINDOW:
            m_seen = m_seen & (distance < window)
        scores = tl.where(m_seen, scores * log2e, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A row that has seen no key yet has peak -inf; subtracting that from itself would be NaN.
        anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(peak - anchor)
        total = total * shrink + tl.sum(weights, 1)
        if QUANTISED:
            # In units of the largest scale so far: fp16 has no room for weights times small scales.
            value_scale = tl.load(p_value_scale + o_scale, mask=m_n, other=0.0)
            new_unit = tl.maximum(unit, tl.max(value_scale, 0))
            divisor = tl.where(new_unit == 0.0, 1.0, new_unit)
            weights *= (value_scale / divisor)[None, :]
            shrink *= unit / divisor
            unit = new_unit
        # [BLOCK_N, BLOCK_VALUE_DIM]
        value = tl.load(
            p_value_head + o_token[:, None] * VALUE_DIM + o_value[None, :],
            mask=m_n[:, None] & m_value[None, :],
            other=0.0,
        )
        acc = acc * shrink[:, None]
        acc += tl.dot(weights.to(dtype), value.to(dtype), input_precision=PRECISION)
        peak = new_peak
    if QUANTISED:
        acc *= unit

    # 5. Store a partial, or ...
    if STORES_PARTIAL:
        partial_at = tl.load(p_item + ITEM_PARTIAL_AT)
        out = acc / tl.where(total == 0, 1.0, total)[:, None]
        lse = tl.where(total == 0, float("-inf"), peak + tl.log2(total))
        o_partial = partial_at.to(tl.int64) + i_head * rows * GROUP + o_m
        tl.store(p_partial_lse + o_partial, lse, mask=m_row)
        tl.store(
            p_partial_out + o_partial[:, None] * VALUE_DIM + o_value[None, :],
            out,
            mask=m_row[:, None] & m_value[None, :],
        )
    else:
        # 6. ... merge the partials of these rows and the sink, and write the output.
        merges_at = tl.load(p_item + ITEM_MERGES_AT)
        first_merge = tl.load(p_merge_index + merges_at * 2)
        merges = tl.load(p_merge_index + merges_at * 2 + 1)
        for i_merge in range(first_merge, first_merge + merges):
            p_merge = p_merges + i_merge * MERGE_FIELDS
            their_at = tl.load(p_merge + MERGE_PARTIAL_AT).to(tl.int64)
            their_first_row = tl.load(p_merge + MERGE_FIRST_ROW)
            their_rows = tl.load(p_merge + MERGE_ROWS)
            o_partial = their_at + i_head * their_rows * GROUP + (row - their_first_row) * GROUP + o_m % GROUP
            their_lse = tl.load(p_partial_lse + o_partial, mask=m_row, other=float("-inf"))
            their_out = tl.load(
                p_partial_out + o_partial[:, None] * VALUE_DIM + o_value[None, :],
                mask=m_row[:, None] & m_value[None, :],
                other=0.0,
            )
            new_peak = tl.maximum(peak, their_lse)
            anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            shrink = tl.exp2(peak - anchor)
            weight = tl.exp2(their_lse - anchor)
            acc = acc * shrink[:, None] + their_out * weight[:, None]
            total = total * shrink + weight
            peak = new_peak
        if HAS_SINKS:
            # A sink adds to the total and has no value; added once, after all partials.
            sink = tl.load(p_sinks + head, mask=m_row, other=float("-inf")) * log2e
            new_peak = tl.maximum(peak, sink)
            anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            shrink = tl.exp2(peak - anchor)
            acc = acc * shrink[:, None]
            total = total * shrink + tl.exp2(sink - anchor)
            peak = new_peak
        out = acc / tl.where(total == 0, 1.0, total)[:, None]
        lse = tl.where(total == 0, float("-inf"), (peak + tl.log2(total)) / log2e)
        tl.store(p_lse + o_head, lse, mask=m_row)
        tl.store(
            p_out + o_head[:, None] * VALUE_DIM + o_value[None, :],
            out.to(p_out.dtype.element_ty),
            mask=m_row[:, None] & m_value[None, :],
        )
