"""How far from the oracle a kernel may be."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvtrie.chunk_kernels import ChunkPool, StepSequence, Variant

SLACK = 1.5


def most_error(
    query: torch.Tensor,
    pool: ChunkPool,
    layer: int,
    sequences: list[StepSequence],
    scale: float,
    variant: Variant,
    expected: torch.Tensor,
) -> float:
    """Largest absolute error allowed: in fp32, 1e-5 of the largest output; in short floats, 1.5 times torch's own.

    Args:
        query: `[rows, q_heads, key_dim]`; torch's error is measured in its dtype.
        pool: what the oracle read; rounded to the query's dtype for torch.
        layer: of the pool.
        sequences: the forest.
        scale: factor on the scores.
        variant: window or ALiBi; torch has no softcap and no sinks.
        expected: the oracle's output.
    """
    if query.dtype == torch.float32:
        return 1e-5 * float(expected.abs().max())
    assert variant.softcap is None and variant.sinks is None
    most, first = 0.0, 0
    for sequence in sequences:
        rows = slice(first, first + sequence.rows)
        first += sequence.rows
        total = sequence.context_tokens + sequence.rows
        slots = torch.tensor(sequence.slots, device=query.device)
        keys, values = (
            side[layer].index_select(1, slots).flatten(1, 2)[:, :total].to(query.dtype)
            for side in (pool.k, pool.v)
        )
        position = torch.arange(sequence.context_tokens, total, device=query.device)[:, None]
        distance = position - torch.arange(total, device=query.device)[None]
        hidden = distance < 0 if variant.window is None else (distance < 0) | (distance >= variant.window)
        bias = torch.zeros(query.shape[1], *distance.shape, device=query.device)
        if variant.slopes is not None:
            bias -= variant.slopes[:, None, None] * distance
        bias = bias.masked_fill(hidden, -torch.inf).to(query.dtype)
        out = scaled_dot_product_attention(
            query[rows].transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=bias[None],
            scale=scale,
            enable_gqa=True,
        )
        most = max(most, float((out[0].transpose(0, 1).double() - expected[rows]).abs().max()))
    return SLACK * most
