"""What changes logits before a token is chosen: for all rows at once, on the logits' device."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrie.api.engine.sampler import Sampler


def process(scores: Tensor, rows: Sequence[tuple[int, Sampler]]) -> None:
    """Applies logit bias, penalties, minimum length and constraints in place.

    Args:
        scores: fp32 logits `[any, vocabulary]`, contiguous.
        rows: rows of `scores`, and the requests they belong to.

    Raises:
        ModelOutputError: a constraint's grammar exceeds its limits.
    """
    _add_biases(scores, rows)
    _subtract_penalties(scores, rows)
    _forbid(scores, rows)
    _constrain(scores, rows)


def _add_biases(scores: Tensor, rows: Sequence[tuple[int, Sampler]]) -> None:
    pairs = [
        (row, token, bias)
        for row, one in rows
        for token, bias in one.sampling.biases
        if token < scores.shape[-1]
    ]
    if pairs:
        at, tokens, biases = zip(*pairs)
        places = _flat(scores, np.asarray(at, np.int64), np.asarray(tokens, np.int64))
        scores.view(-1).index_add_(0, places, torch.tensor(biases, dtype=scores.dtype, device=scores.device))


def _subtract_penalties(scores: Tensor, rows: Sequence[tuple[int, Sampler]]) -> None:
    counted = [(row, one.sampling, one.counts) for row, one in rows if one.counts is not None]
    if not counted:
        return
    lengths = [len(counts.tokens) for _, _, counts in counted]

    def each(values: Sequence[float]) -> NDArray[Any]:
        return np.repeat(np.asarray(values), lengths)

    tokens = np.concatenate([counts.tokens for _, _, counts in counted])
    counts = np.concatenate([counts.counts for _, _, counts in counted])
    repetition = each([sampling.repetition_penalty for _, sampling, _ in counted])
    frequency = each([sampling.frequency_penalty for _, sampling, _ in counted])
    presence = each([sampling.presence_penalty for _, sampling, _ in counted])
    factors = np.stack([repetition, counts * frequency + (counts > 0) * presence]).astype(np.float32)
    rows_of = each([row for row, _, _ in counted])
    # A prompt may have tokens that a model embeds and has no logits for.
    has_logit = tokens < scores.shape[-1]
    places = _flat(scores, rows_of[has_logit], tokens[has_logit])
    # [2, seen tokens of all rows], one transfer
    divisor, subtracted = torch.from_numpy(factors[:, has_logit]).to(scores.device)
    flat = scores.view(-1)
    found = flat[places]
    found = torch.where(found < 0, found * divisor, found / divisor) - subtracted
    flat[places] = found


def _forbid(scores: Tensor, rows: Sequence[tuple[int, Sampler]]) -> None:
    pairs = [(row, token) for row, one in rows for token in one.forbidden if token < scores.shape[-1]]
    if pairs:
        at, tokens = np.asarray(pairs, np.int64).T
        scores.view(-1)[_flat(scores, at, tokens)] = -inf


def _constrain(scores: Tensor, rows: Sequence[tuple[int, Sampler]]) -> None:
    masks = [(row, one.grammar.mask()) for row, one in rows if one.grammar is not None]
    if not masks:
        return
    vocabulary = scores.shape[-1]
    # Packed on the way to the device: an eighth of the bytes.
    packed = torch.from_numpy(np.stack([mask for _, mask in masks])).to(scores.device)
    bits = torch.arange(8, dtype=torch.uint8, device=scores.device)
    # [rows, vocabulary / 8, 8]
    forbidden = ((packed[:, :, None] >> bits) & 1).flatten(1)[:, :vocabulary] == 0
    at = torch.tensor([row for row, _ in masks], device=scores.device)
    if forbidden.shape[-1] < vocabulary:
        # A padded head: its last logits are of no token.
        scores[at, forbidden.shape[-1] :] = -inf
    known = scores[:, : forbidden.shape[-1]]
    known[at] = known[at].masked_fill(forbidden, -inf)


def _flat(scores: Tensor, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Tensor:
    """Places of `[rows, tokens]` in the flattened scores."""
    return torch.from_numpy(rows * scores.shape[-1] + tokens).to(scores.device)
