"""Choosing the next token of one sequence, with Hugging Face's own warpers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from numbers import Real
from operator import index

import torch
from torch import Tensor

from kvtrie.prefix_tree.errors import InputError

_LEAST_TEMPERATURE = 1e-30
"""Lower temperatures are raised to this one: already here, of two fp32 logits that differ only the larger is ever
drawn, and a lower one makes quotients overflow."""

_SEEDS = range(-(1 << 63), 1 << 64)
"""Range of seeds of `torch.Generator.manual_seed`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        InputError: a value out of range, or of another type.
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
        temperature = _finite("temperature", self.temperature)
        top_k = whole_number("top_k", self.top_k)
        top_p = _finite("top_p", self.top_p)
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise InputError(
                f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self.temperature}, "
                f"{self.top_k} and {self.top_p}"
            )
        if self.seed is not None:
            seed = whole_number("seed", self.seed)
            if seed not in _SEEDS:
                raise InputError(f"seed must be within {_SEEDS.start} and {_SEEDS.stop - 1}, got {seed}")
            object.__setattr__(self, "seed", seed)
        # Hugging Face's warpers take no 2 for 2.0. Frozen: what was passed gives way to what it means.
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_k", top_k)
        object.__setattr__(self, "top_p", top_p)


def whole_number(name: str, value: object) -> int:
    """`value` as an int, where it is a whole number of any type (bools are none).

    Raises:
        InputError: it is not; the message begins with `name`.
    """
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        try:
            return index(value)
        except TypeError:
            # A tensor of floats, or of several numbers: it has the method, and raises.
            raise InputError(f"{name} must be a whole number, got {value!r}") from None
    raise InputError(f"{name} must be a whole number, got {value!r}")


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise InputError(f"{name} must be finite, got {value!r}")
    return number


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
                self._warpers.append(TemperatureLogitsWarper(max(sampling.temperature, _LEAST_TEMPERATURE)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def next_token(self, logits: Tensor, tokens: Sequence[int]) -> int:
        """The next token after `tokens`, from fp32 logits `[vocabulary]`."""
        # These warpers look at none of the tokens; 100,000 of them would take milliseconds to copy.
        scores = self._warpers(torch.tensor([tokens[-1:]], device=logits.device), logits[None])
        weights = torch.softmax(scores[0], -1)
        return int(torch.multinomial(weights, 1, generator=self._generator))
