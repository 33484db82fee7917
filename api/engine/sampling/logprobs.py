"""Log probabilities of chosen tokens, and of the likeliest ones beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RankedLogprob:
    """One token's log probability, natural, under the model's own distribution."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenLogprobs:
    """Log probabilities at one place of a completion, natural, under the model's own distribution: before
    penalties, bias, constraint and temperature."""

    token: int
    """The one chosen."""
    logprob: float
    top: tuple[RankedLogprob, ...]
    """The likeliest tokens, likeliest first; the chosen one need not be among them."""


def packed_logprobs(logits: Tensor, chosen: Tensor, most: int) -> Tensor:
    """What `unpacked` reads, on the logits' device: fp64 `[rows, 1 + 2 * most]`.

    Args:
        logits: fp32 `[rows, vocabulary]`, the model's.
        chosen: int64 `[rows]`.
        most: how many of the likeliest tokens, of at most the vocabulary.
    """
    logprobs = torch.log_softmax(logits, -1)
    own = logprobs.gather(-1, chosen[:, None])
    top = logprobs.topk(most, -1)
    # fp64 holds every token id exactly: one tensor, one transfer.
    return torch.cat([own.double(), top.indices.double(), top.values.double()], -1)


def unpacked(token: int, packed: list[float], most: int, count: int) -> ChosenLogprobs:
    """A row of `packed_logprobs`, with the `count` likeliest of its `most`."""
    tokens, values = packed[1 : 1 + most], packed[1 + most :]
    top = tuple(RankedLogprob(int(one), value) for one, value in zip(tokens[:count], values[:count]))
    return ChosenLogprobs(token, packed[0], top)
