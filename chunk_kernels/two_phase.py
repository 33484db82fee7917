"""The two-phase attention in torch: chunk-first over shared runs, then sequence-first.

Reference: `kvtrie.chunk_kernels.reference`. Source: ChunkAttention (arXiv 2402.15220), section 3.2, with runs
in place of single chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrie.chunk_kernels.partial import composed_attention, merge, partial_attention, with_sinks
from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.quantise import StoredLayer
from kvtrie.chunk_kernels.step import Step
from kvtrie.chunk_kernels.torch_items import CausalItem, RunItem, SlabItem, Span, torch_work
from kvtrie.chunk_kernels.variant import PLAIN, Variant
from kvtrie.chunk_kernels.variant_items import DenseItem, DenseSlab, varied_items


def attend_two_phase(
    query: Tensor, pool: ChunkPool, layer: int, step: Step, scale: float, variant: Variant = PLAIN
) -> tuple[Tensor, Tensor]:
    """See `kvtrie.chunk_kernels.attend.attend`."""
    work = torch_work(step)
    if work.row_order is not None:
        query = query[work.row_order]
    rows, q_heads, _ = query.shape
    variant.check_heads(q_heads, query.device)
    out = torch.zeros(rows, q_heads, pool.shape.value_dim, dtype=torch.float32, device=query.device)
    lse = torch.full((rows, q_heads), -torch.inf, dtype=torch.float32, device=query.device)
    keys, values = pool.keys(layer), pool.values(layer)
    where: Tensor | slice
    for item in varied_items(step, variant):
        if isinstance(item, SlabItem):
            where = item.rows
            part = _slab(query[where], keys, values, item, scale)
        elif isinstance(item, DenseSlab):
            where = item.slab.rows
            part = _dense_slab(query[where], keys, values, item, scale, variant)
        else:
            where = slice(item.first_row, item.end_row)
            if isinstance(item, RunItem):
                part = _run(query[where], keys, values, item.span, scale)
            elif isinstance(item, CausalItem):
                part = _causal(query[where], keys, values, item, scale)
            else:
                part = _dense(query[where], keys, values, item, scale, variant)
        if item.fresh:
            out[where], lse[where] = part
        else:
            out[where], lse[where] = merge(out[where], lse[where], *part)
    if variant.sinks is not None:
        out, lse = with_sinks(out, lse, variant.sinks)
    if work.row_order is not None:
        back = torch.empty_like(work.row_order)
        back[work.row_order] = torch.arange(rows, device=back.device)
        out, lse = out[back], lse[back]
    return out.to(query.dtype), lse


def _run(
    query: Tensor, keys: StoredLayer, values: StoredLayer, span: Span, scale: float
) -> tuple[Tensor, Tensor]:
    """One run for its rows. Rows and group heads share keys, so both are one dimension: fewer, taller tiles."""
    rows, q_heads, key_dim = query.shape
    kv_heads = keys.shape[0]
    group = q_heads // kv_heads
    packed = query.view(rows, kv_heads, group, key_dim).permute(1, 0, 2, 3).reshape(1, kv_heads, -1, key_dim)
    out, lse = partial_attention(packed, tokens_of(keys, span)[None], tokens_of(values, span)[None], scale)
    out = out.view(kv_heads, rows, group, -1).permute(1, 0, 2, 3).reshape(rows, q_heads, -1)
    lse = lse.reshape(kv_heads, rows, group).permute(1, 0, 2).reshape(rows, q_heads)
    return out.float(), lse


def _causal(
    query: Tensor, keys: StoredLayer, values: StoredLayer, item: CausalItem, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = partial_attention(
        query.transpose(0, 1)[None],
        tokens_of(keys, item.span)[None],
        tokens_of(values, item.span)[None],
        scale,
        causal=True,
    )
    return out[0].transpose(0, 1).float(), lse[0].transpose(0, 1)


def _slab(
    query: Tensor, keys: StoredLayer, values: StoredLayer, item: SlabItem, scale: float
) -> tuple[Tensor, Tensor]:
    sequences, q_heads, key_dim = query.shape
    grouped = query.view(sequences, keys.shape[0], -1, key_dim)
    out, lse = partial_attention(
        grouped, _slab_tokens(keys, item), _slab_tokens(values, item), scale, mask=item.mask
    )
    return out.reshape(sequences, q_heads, -1).float(), lse.reshape(sequences, q_heads)


def _dense(
    query: Tensor, keys: StoredLayer, values: StoredLayer, item: DenseItem, scale: float, variant: Variant
) -> tuple[Tensor, Tensor]:
    mask = item.mask
    if variant.slopes is not None:
        tokens = torch.arange(item.start, item.start + item.span.tokens, device=query.device)
        # [q_heads, rows, tokens]
        bias = variant.slopes[:, None, None] * (tokens - item.positions[:, None]).float()
        mask = bias if mask is None else bias.add_(mask)
    out, lse = composed_attention(
        query.transpose(0, 1)[None],
        tokens_of(keys, item.span)[None],
        tokens_of(values, item.span)[None],
        scale,
        mask=mask,
        softcap=variant.softcap,
    )
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _dense_slab(
    query: Tensor, keys: StoredLayer, values: StoredLayer, item: DenseSlab, scale: float, variant: Variant
) -> tuple[Tensor, Tensor]:
    sequences, q_heads, key_dim = query.shape
    grouped = query.view(sequences, keys.shape[0], -1, key_dim)
    mask = item.slab.mask
    if variant.slopes is not None:
        # [sequences, kv_heads, group, tokens]
        bias = -variant.slopes.view(1, keys.shape[0], -1, 1) * item.distances
        mask = bias if mask is None else bias.add_(mask)
    out, lse = composed_attention(
        grouped,
        _slab_tokens(keys, item.slab),
        _slab_tokens(values, item.slab),
        scale,
        mask=mask,
        softcap=variant.softcap,
    )
    return out.reshape(sequences, q_heads, -1), lse.reshape(sequences, q_heads)


def tokens_of(chunks: StoredLayer, span: Span) -> Tensor:
    """A span as `[kv_heads, tokens, dim]`: a view where its slots are adjacent, else a gather."""

    def take(stored: Tensor) -> Tensor:
        if span.adjacent:
            found = stored[:, span.slots[0] : span.slots[0] + len(span.slots)]
        else:
            found = stored[:, list(span.slots)]
        return found.flatten(1, 2)[:, span.offset : span.offset + span.tokens]

    return chunks.read(take)


def _slab_tokens(chunks: StoredLayer, item: SlabItem) -> Tensor:
    """Private runs side by side, `[sequences, kv_heads, tokens, dim]`."""
    sequences = item.rows.shape[0]

    def take(stored: Tensor) -> Tensor:
        kv_heads, _, chunk_tokens, dim = stored.shape
        if item.stride is None:
            found = stored.index_select(1, item.slots).view(kv_heads, sequences, -1, dim).transpose(0, 1)
        else:
            found = stored.as_strided(
                (sequences, kv_heads, item.chunks * chunk_tokens, dim),
                (item.stride * stored.stride(1), stored.stride(0), dim, 1),
                stored.storage_offset() + item.first_slot * stored.stride(1),
            )
        return found[:, :, : item.tokens]

    return chunks.read(take)
