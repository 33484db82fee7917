"""Draws of a step's rows on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor

from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.nucleus import NucleusDraw, block_sums
from kvtrie.api.engine.sampling.sorted_filters import Filters, draw_sorted

_FEW = (16, 64, 256)
"""Values of top-k up to which the likeliest tokens are collected and sorted. Each row's is rounded up to one of
these, so that its sums do not depend on the other rows'."""

_TIES = 64
"""So many tokens more are collected, for those that tie with the k-th."""


class CpuDraws:
    """Draws tokens, in memory that is kept: fresh memory of this size costs as much as the work in it."""

    def __init__(self) -> None:
        self.draws = 0
        """Tokens drawn."""
        self.sorts = 0
        """How many draws sorted the vocabulary, because rounding or ties decided."""
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, like: Tensor, rows: int) -> Tensor:
        """Uninitialised, `[rows, vocabulary]`, of the dtype of `like` and on its device; kept on a CPU."""
        if like.device.type != "cpu":
            return like.new_empty(rows, like.shape[-1])
        kept = self._buffers.get(name)
        if kept is None or kept.shape[-1] != like.shape[-1] or len(kept) < rows:
            kept = self._buffers[name] = like.new_empty(rows, like.shape[-1])
        return kept[:rows]

    def draw(self, scores: Tensor, samplers: Sequence[Sampler]) -> Tensor:
        """A token of each row.

        Args:
            scores: fp32 `[rows, vocabulary]` after temperature; changed.
            samplers: of the rows.

        Returns:
            int64 `[rows]`.
        """
        self.draws += len(samplers)
        tokens = torch.zeros(len(samplers), dtype=torch.int64)
        left = list(range(len(samplers)))
        for few in _FEW:
            if few + _TIES < scores.shape[-1]:
                rows = [row for row in left if _bucket(samplers[row].sampling.top_k) == few]
                drawn = self._draw_few(scores, samplers, rows, few, tokens) if rows else set()
                left = [row for row in left if row not in drawn]
        if left:
            self._draw_many(scores, samplers, left, tokens)
        return tokens

    def _draw_few(
        self, scores: Tensor, samplers: Sequence[Sampler], rows: list[int], few: int, tokens: Tensor
    ) -> set[int]:
        """Draws for rows of small top-k, and says for which: not where more tokens tie than were collected."""
        values, places = (scores if len(rows) == len(scores) else scores[rows]).topk(few + _TIES)
        bounds = torch.tensor([samplers[row].sampling.top_k for row in rows])
        kth = values.gather(-1, bounds[:, None] - 1)[:, 0]
        whole = (values[:, -1] < kth).nonzero()[:, 0].tolist()
        # Ascending, and tokens of equal scores in the order of their ids, whatever order they were found in.
        places, order = places[whole].sort(-1)
        ascending, by_score = values[whole].gather(-1, order).sort(dim=-1, stable=True)
        of = [samplers[rows[i]] for i in whole]
        if of:
            filters = Filters.of([one.sampling for one in of], scores.device)
            found = draw_sorted(
                ascending, places.gather(-1, by_score), filters, [one.uniform() for one in of]
            )
            tokens[[rows[i] for i in whole]] = found
        return {rows[i] for i in whole}

    def _draw_many(
        self, scores: Tensor, samplers: Sequence[Sampler], rows: list[int], tokens: Tensor
    ) -> None:
        """Draws for rows whose tokens are too many to be sorted."""
        for row in rows:
            k = samplers[row].sampling.top_k
            if 0 < k < scores.shape[-1]:
                own, place = scores[row].numpy(), scores.shape[-1] - k
                np.putmask(own, own < np.partition(own, place)[place], -inf)
        given = scores if len(rows) == len(scores) else scores[rows]
        probabilities = self.buffer("probabilities", scores, len(rows))
        torch.softmax(given, -1, out=probabilities)
        sums = block_sums(probabilities)
        for i, row in enumerate(rows):
            one = NucleusDraw(given[i], probabilities[i], sums[i], samplers[row])
            tokens[row] = one.token()
            self.sorts += one.was_sorted


def _bucket(top_k: int) -> int:
    """The value of `_FEW` for a top-k; 0 where there is none."""
    return next((few for few in _FEW if 0 < top_k <= few), 0)
