"""What every path of attention is measured against."""

from __future__ import annotations

import torch

from kvtrie.chunk_kernels import ChunkPool, StepSequence
from kvtrie.chunk_kernels.attend_triton import PLAIN, Variant


def oracle(
    query: torch.Tensor,
    pool: ChunkPool,
    layer: int,
    sequences: list[StepSequence],
    scale: float,
    variant: Variant = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention with every variant, in fp64, written apart from the reference and the kernel."""
    outs, lses, first = [], [], 0
    for sequence in sequences:
        total = sequence.context_tokens + sequence.rows
        rows = query[first : first + sequence.rows].double()
        first += sequence.rows
        slots = torch.tensor(sequence.slots, device=query.device)
        keys = pool.k[layer].index_select(1, slots).flatten(1, 2)[:, :total].double()
        values = pool.v[layer].index_select(1, slots).flatten(1, 2)[:, :total].double()
        group = rows.shape[1] // keys.shape[0]
        scores = torch.einsum("rhd,htd->hrt", rows, keys.repeat_interleave(group, 0)) * scale
        if variant.softcap is not None:
            scores = variant.softcap * torch.tanh(scores / variant.softcap)
        position = torch.arange(sequence.context_tokens, total, device=query.device)[:, None]
        distance = position - torch.arange(total, device=query.device)[None]
        if variant.slopes is not None:
            scores = scores - variant.slopes.double()[:, None, None] * distance
        hidden = distance < 0
        if variant.window is not None:
            hidden = hidden | (distance >= variant.window)
        scores = scores.masked_fill(hidden, -torch.inf)
        if variant.sinks is not None:
            sinks = variant.sinks.double()[:, None, None].expand(-1, sequence.rows, 1)
            weights = torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
            lses.append(torch.logsumexp(torch.cat([scores, sinks], -1), -1).T)
        else:
            weights = torch.softmax(scores, -1)
            lses.append(torch.logsumexp(scores, -1).T)
        outs.append(torch.einsum("hrt,htd->rhd", weights, values.repeat_interleave(group, 0)))
    return torch.cat(outs), torch.cat(lses)
