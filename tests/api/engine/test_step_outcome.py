"""The likeliest tokens of a step, and which rows' logits are finite."""

from __future__ import annotations

import math

import pytest
import torch

from kvtrie.api.engine.step_runner import _read


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 77, 999])
def test_one_logit_that_is_not_finite(value: float, place: int) -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1))
    logits[1, place] = value
    assert _read(logits)[1] == [True, False, True]


def test_both_infinities() -> None:
    """Their sum is no number."""
    logits = torch.zeros(2, 10)
    logits[0, 3], logits[0, 4] = math.inf, -math.inf
    assert _read(logits)[1] == [False, True]


def test_finite_logits_whose_sum_is_not() -> None:
    logits = torch.full((2, 10), 3e38)
    logits[1] = 0
    assert _read(logits)[1] == [True, True]


def test_the_first_of_equal_logits_is_the_likeliest() -> None:
    """As `argmax` has it, which Hugging Face takes."""
    logits = torch.randint(0, 4, (20, 3001), generator=torch.Generator().manual_seed(2)).float()
    assert _read(logits)[0] == [row.index(max(row)) for row in logits.tolist()]
