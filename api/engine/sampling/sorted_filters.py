"""Top-k, top-p and min-p by one sort, step by step as Hugging Face's warpers do them.

Right on any device, without a transfer to the host. On a CPU the sort of a large vocabulary takes many times as
long as everything else; `nucleus` does without, and asks this module where rounding or ties decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from kvtrie.api.engine.sampling.parameters import Sampling


@dataclass(frozen=True, slots=True)
class Filters:
    """Settings of rows, each `[rows, 1]`, on the scores' device."""

    top_k: Tensor
    """int64; the whole vocabulary where it is off."""
    removed_mass: Tensor
    """fp32; 1 - top_p, and -1 where it is off."""
    min_p: Tensor
    """fp32; 0 where it is off."""

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> Filters:
        """Settings of these rows, on `device`."""
        largest = torch.iinfo(torch.int64).max
        top_k = [min(sampling.top_k or largest, largest) for sampling in samplings]
        removed = [1 - sampling.top_p if sampling.top_p < 1 else -1.0 for sampling in samplings]
        min_p = [sampling.min_p for sampling in samplings]
        return cls(
            torch.tensor(top_k, device=device)[:, None],
            torch.tensor(removed, dtype=torch.float32, device=device)[:, None],
            torch.tensor(min_p, dtype=torch.float32, device=device)[:, None],
        )


def filtered(ascending: Tensor, filters: Filters) -> Tensor:
    """Probabilities after the filters, 0 where a token is removed.

    Args:
        ascending: fp32 scores `[rows, tokens]` after temperature, sorted.
        filters: of the rows.

    Returns:
        fp32 `[rows, tokens]`, in the order of `ascending`.
    """
    # TopKLogitsWarper: what ties with the k-th is kept.
    tokens = ascending.shape[-1]
    kth = ascending.gather(-1, tokens - filters.top_k.clamp(max=tokens))
    scores = ascending.masked_fill(ascending < kth, -inf)
    # TopPLogitsWarper; the last one is the likeliest, which always is kept.
    removed = torch.softmax(scores, -1).cumsum(-1) <= filters.removed_mass
    removed[:, -1] = False
    scores = scores.masked_fill(removed, -inf)
    # MinPLogitsWarper
    probabilities = torch.softmax(scores, -1)
    removed = probabilities < filters.min_p * probabilities[:, -1:]
    removed[:, -1] = False
    return torch.softmax(scores.masked_fill(removed, -inf), -1)


def filtered_unsorted(scores: Tensor, filters: Filters) -> Tensor:
    """`filtered` of scores in any order: fp32 `[rows, tokens]`, in that order."""
    ascending, order = torch.sort(scores)
    return torch.zeros_like(scores).scatter(-1, order, filtered(ascending, filters))


def draw_sorted(ascending: Tensor, tokens: Tensor, filters: Filters, uniforms: Sequence[float]) -> Tensor:
    """Draws a token of each row.

    Args:
        ascending: fp32 scores `[rows, tokens]` after temperature, sorted.
        tokens: int64 `[rows, tokens]`: their token ids.
        filters: of the rows.
        uniforms: a number of `[0, 1)` for each row.

    Returns:
        int64 `[rows]`.
    """
    sums = filtered(ascending, filters).double().cumsum(-1)
    targets = sums[:, -1:] * torch.tensor(uniforms, dtype=sums.dtype, device=sums.device)[:, None]
    # Right of equal sums, for a removed token adds nothing. Rounding may give the whole sum.
    places = torch.searchsorted(sums, targets, right=True).clamp(max=sums.shape[-1] - 1)
    return tokens.gather(-1, places)[:, 0]
