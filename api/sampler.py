"""Choosing the next token of one sequence, with Hugging Face's own warpers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """1 is off."""
    seed: int | None = None
    """Makes the choice repeatable, whatever else is in the batch; None draws a fresh one."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self.temperature}, "
                f"{self.top_k} and {self.top_p}"
            )


class Sampler:
    """Draws tokens for one request; its own generator makes it independent of the batch around it."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        from transformers import (
            LogitsProcessorList,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.greedy = sampling.temperature == 0
        """Whether the likeliest token is taken, which the engine finds for all rows at once."""
        self._warpers = LogitsProcessorList()
        if not self.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def next_token(self, logits: Tensor, tokens: list[int]) -> int:
        """The next token after `tokens`, from fp32 logits `[vocabulary]`."""
        scores = self._warpers(torch.tensor([tokens], device=logits.device), logits[None])
        weights = torch.softmax(scores[0], -1)
        return int(torch.multinomial(weights, 1, generator=self._generator))
