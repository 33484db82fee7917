"""Draws from the distribution of top-p and min-p without sorting the vocabulary.

A token is drawn from the whole distribution, and kept if the filters keep it; else another one is drawn, from the
tokens that are likelier than the one refused. That a token is kept depends on the probability of those that are
likelier, which is a sum over the vocabulary; so nearly every draw costs one or two passes instead of a sort.
This is rejection sampling with a pivot (FlashInfer's, "Sorting-Free GPU Kernels for LLM Sampling", 2025): the
tokens drawn have exactly the filtered distribution, for whatever is kept is likelier than any refused token.

Hugging Face's sums have rounding errors, and it keeps some of several equally likely tokens at the edge. Where
either could decide on the token at hand, the row is sorted as Hugging Face does it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import threshold

from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.sorted_filters import Filters, filtered_unsorted

BLOCK = 128
"""Tokens that are summed first, so that a draw looks at vocabulary / 128 sums, and then at 128 tokens."""

_PART = 32_000
"""Tokens that torch sums in one thread. More are shared out among its threads; where other processes use the cores
too, the wait for the last thread takes many times as long as the work."""

_ROUNDING = 2e-5
"""More than fp32 sums over 200,000 probabilities differ between orders of adding them."""


def block_sums(weights: Tensor) -> NDArray[np.float64]:
    """Sums over blocks of `BLOCK` tokens, the last one of the rest: `[rows, blocks]`.

    Args:
        weights: fp32 `[rows, vocabulary]`, on the CPU.
    """
    whole = weights.shape[-1] // BLOCK * BLOCK
    parts = [weights[:, :whole].view(len(weights), -1, BLOCK).sum(-1)] if whole else []
    if whole < weights.shape[-1]:
        parts.append(weights[:, whole:].sum(-1, keepdim=True))
    sums: NDArray[np.float64] = torch.cat(parts, -1).double().numpy()
    return sums


def block_sums_of_row(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """`block_sums` of one row, `[vocabulary]`, in one thread."""
    whole = len(weights) // BLOCK * BLOCK
    sums = weights[:whole].reshape(-1, BLOCK).sum(-1).astype(np.float64)
    return sums if whole == len(weights) else np.append(sums, weights[whole:].sum())


def pick(weights: NDArray[np.float32], sums: NDArray[np.float64], uniform: float) -> int:
    """The token at `uniform` of the cumulative weights. Its weight is above 0.

    Args:
        weights: `[vocabulary]`, at least one above 0.
        sums: their `block_sums`, `[blocks]`.
        uniform: of `[0, 1)`.
    """
    ends = sums.cumsum()
    target = uniform * ends[-1]
    # Right of equal sums: what adds nothing is not drawn.
    block = min(int(ends.searchsorted(target, "right")), len(ends) - 1)
    while not sums[block]:
        # Only where rounding has made `target` the whole sum.
        block -= 1
    start = block * BLOCK
    inside = weights[start : start + BLOCK].astype(np.float64)
    place = int(inside.cumsum().searchsorted(target - (ends[block] - sums[block]), "right"))
    if place >= len(inside) or not inside[place]:
        # The block's sum was rounded up.
        place = int(inside.nonzero()[0][-1])
    return start + place


class NucleusDraw:
    """Draws of one row.

    Args:
        scores: fp32 `[vocabulary]` after temperature and top-k, on the CPU.
        probabilities: their softmax, fp32 `[vocabulary]`.
        sums: block sums of the probabilities, `[blocks]`.
        sampler: of the request.
    """

    def __init__(
        self, scores: Tensor, probabilities: Tensor, sums: NDArray[np.float64], sampler: Sampler
    ) -> None:
        self._scores = scores
        self._parts = probabilities.chunk(-(-len(probabilities) // _PART))
        self._row: NDArray[np.float32] = probabilities.numpy()
        self._sums = sums
        self._sampler = sampler
        sampling = sampler.sampling
        self._all = float(sums.sum())
        self._has_top_p = sampling.top_p < 1
        # As a float of 32 bits, which Hugging Face compares with.
        self._nucleus = self._all - float(np.float32(1 - sampling.top_p))
        """A token is kept if those likelier than it have less than this probability together."""
        self._least = sampling.min_p * float(self._row.max()) if sampling.min_p else 0.0
        """A token is kept if it has this probability."""
        self.was_sorted = False
        """Whether rounding or ties had to be decided by a sort."""

    def token(self) -> int:
        """The token drawn."""
        weights, sums = self._row, self._sums
        if self._least:
            weights, sums = self._above(self._least * (1 - _ROUNDING))
        attempt = 0
        while True:
            uniform = self._sampler.uniform(attempt)
            token = pick(weights, sums, uniform)
            probability = float(self._row[token])
            kept = self._is_kept(probability)
            if kept is None:
                self.was_sorted = True
                weights = self.kept_by_sort().numpy()
                return pick(weights, block_sums_of_row(weights), uniform)
            if kept:
                return token
            weights, sums = self._above(probability)
            attempt += 1

    def keeps(self, token: int) -> bool:
        """Whether a token may be drawn."""
        kept = self._is_kept(float(self._row[token]))
        return bool(self.kept_by_sort()[token]) if kept is None else kept

    def kept_by_sort(self) -> Tensor:
        """Probabilities, 0 for tokens that are not kept: fp32 `[vocabulary]`."""
        filters = Filters.of([self._sampler.sampling], self._scores.device)
        return filtered_unsorted(self._scores[None], filters)[0]

    def _is_kept(self, probability: float) -> bool | None:
        """Whether tokens of this probability are kept; None where rounding or ties decide."""
        if probability < self._least * (1 - _ROUNDING):
            return False
        if self._has_top_p:
            kept = self._is_in_nucleus(probability)
            if not kept:
                return kept
        if self._least and probability < self._least * (1 + _ROUNDING):
            return None
        return True

    def _is_in_nucleus(self, probability: float) -> bool | None:
        surely = self._nucleus - _ROUNDING
        if self._all - probability < surely:
            return True
        as_likely = self._mass_above(float(np.nextafter(np.float32(probability), np.float32(0))))
        # That which is likelier, and all that ties with it.
        if as_likely - probability < surely or as_likely <= probability:
            return True
        if self._mass_above(probability) >= self._nucleus + _ROUNDING:
            return False
        return None

    def _mass_above(self, probability: float) -> float:
        return sum(float(threshold(part, probability, 0.0).sum()) for part in self._parts)

    def _above(self, probability: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        weights: NDArray[np.float32] = self._row * (self._row > np.float32(probability))
        return weights, block_sums_of_row(weights)
