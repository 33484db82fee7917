"""The plain reference: one sequence at a time, all its keys, in fp32. Slow, and obviously right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.step import StepSequence
from kvtrie.chunk_kernels.variant import PLAIN, Variant


def attend_reference(
    query: Tensor,
    pool: ChunkPool,
    layer: int,
    sequences: Sequence[StepSequence],
    scale: float,
    variant: Variant = PLAIN,
) -> tuple[Tensor, Tensor]:
    """As `attend`, from the sequences themselves: rows in the caller's order.

    Returns out `[rows, q_heads, value_dim]` and natural-log lse `[rows, q_heads]`, both fp32.
    """
    outs, lses = [], []
    first_row = 0
    for sequence in sequences:
        rows = query[first_row : first_row + sequence.rows].float()
        first_row += sequence.rows
        take = partial(_tokens, sequence)
        keys = pool.keys(layer, torch.float32).read(take)
        values = pool.values(layer, torch.float32).read(take)
        out, lse = attend_rows(rows, keys, values, scale, variant)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def attend_rows(
    rows: Tensor, keys: Tensor, values: Tensor, scale: float, variant: Variant = PLAIN
) -> tuple[Tensor, Tensor]:
    """One sequence's attention: its last tokens to all of it.

    Args:
        rows: queries of the last tokens, fp32 `[rows, q_heads, key_dim]`.
        keys: of all tokens, fp32 `[kv_heads, tokens, key_dim]`.
        values: of all tokens, fp32 `[kv_heads, tokens, value_dim]`.
        scale: factor on the scores.
        variant: of the layer.

    Returns out `[rows, q_heads, value_dim]` and natural-log lse `[rows, q_heads]`, both fp32.
    """
    count, total = rows.shape[0], keys.shape[1]
    group = rows.shape[1] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    scores = torch.einsum("rhd,htd->hrt", rows, keys) * scale
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    position = torch.arange(total - count, total, device=rows.device)
    distance = position[:, None] - torch.arange(total, device=rows.device)[None]
    if variant.slopes is not None:
        scores = scores - variant.slopes[:, None, None] * distance
    hidden = distance < 0
    if variant.window is not None:
        hidden |= distance >= variant.window
    scores = scores.masked_fill(hidden, -torch.inf)
    if variant.sinks is not None:
        # One more key, whose value is nothing.
        sink = variant.sinks[:, None, None].expand(-1, count, 1)
        scores = torch.cat([scores, sink], -1)
        values = torch.cat([values, values.new_zeros(values.shape[0], 1, values.shape[2])], 1)
    return torch.einsum("hrt,htd->rhd", torch.softmax(scores, -1), values), torch.logsumexp(scores, -1).T


def _tokens(sequence: StepSequence, stored: Tensor) -> Tensor:
    """The sequence's tokens of a layer, `[kv_heads, tokens, dim]`."""
    total = sequence.context_tokens + sequence.rows
    return stored[:, list(sequence.slots)].flatten(1, 2)[:, :total]
