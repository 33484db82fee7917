"""Temperature, top-k, top-p, min-p and penalties have Hugging Face's meaning: the same tokens, as likely."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvtrie.api import Sampling
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.choose import Chooser, ChosenToken, _draw_by_sort, next_token
from kvtrie.api.engine.sampling.cpu_draws import CpuDraws
from kvtrie.api.engine.sampling.grammar import GrammarState
from kvtrie.api.engine.sampling.nucleus import NucleusDraw, block_sums, pick
from kvtrie.api.engine.sampling.processors import process
from kvtrie.api.engine.sampling.sorted_filters import Filters, filtered_unsorted

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.3},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_p": 1 - 1e-9},
    {"temperature": 0.6, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 2.5, "top_k": 300, "top_p": 0.95},
    {"temperature": 1e-4, "top_p": 0.5},
    {"temperature": 1e4, "top_p": 0.5, "min_p": 0.2},
    {"temperature": 1.0, "top_k": 10**6, "top_p": 0.7},
]


def random_logits(kind: str, rows: int = 6, vocabulary: int = 700) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    if kind == "forbidden":
        logits[torch.rand(rows, vocabulary, generator=generator) < 0.7] = -math.inf
    elif kind == "ties":
        logits = logits.round()
    elif kind == "bfloat16":
        logits = logits.bfloat16().float()
    elif kind == "equal":
        logits = torch.zeros(rows, vocabulary)
    elif kind == "one":
        logits[:, 7] = 1000
    elif kind == "flat":
        logits /= 100
    return logits


KINDS = ["plain", "forbidden", "ties", "bfloat16", "equal", "one", "flat"]


def warped(logits: Tensor, sampling: Sampling) -> Tensor:
    """Hugging Face's own, in the order in which `generate` applies them."""
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    found: Tensor = warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits)
    return found


def draws(logits: Tensor, sampling: Sampling) -> list[NucleusDraw]:
    """Draws of every row, after temperature; without top-k, which is applied before."""
    scores = logits / sampling.temperature
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(torch.zeros(1), scores)
    probabilities = torch.softmax(scores, -1)
    sums = block_sums(probabilities)
    return [
        NucleusDraw(score, probability, total, Sampler(sampling))
        for score, probability, total in zip(scores, probabilities, sums)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_kept_tokens_and_their_probabilities_by_the_sort(setting: dict[str, Any], kind: str) -> None:
    sampling, logits = Sampling(**setting), random_logits(kind)
    expected = torch.softmax(warped(logits, sampling), -1)
    filters = Filters.of([sampling] * len(logits), logits.device)
    found = filtered_unsorted(logits / sampling.temperature, filters)
    assert same_but_for_ties(found > 0, expected > 0, logits)
    torch.testing.assert_close(found.sort().values, expected.sort().values, atol=1e-6, rtol=0)
    if kind not in ("ties", "bfloat16", "equal"):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def same_but_for_ties(found: Tensor, expected: Tensor, logits: Tensor) -> bool:
    """Hugging Face's sort is not stable: which of equal logits at the edge are kept depends on the machine's."""
    lowest = logits.double().masked_fill(~expected, math.inf).amin(-1, keepdim=True)
    differs = (found != expected) & (logits.double() != lowest)
    return not differs.any() and torch.equal(found.sum(-1), expected.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_kept_tokens_without_a_sort(setting: dict[str, Any], kind: str) -> None:
    sampling, logits = Sampling(**setting), random_logits(kind, rows=2)
    expected = warped(logits, sampling) > -math.inf
    for row, draw in enumerate(draws(logits, sampling)):
        probabilities = torch.softmax(logits[row] / sampling.temperature, -1)
        possible = [token for token in range(logits.shape[-1]) if probabilities[token] > 0]
        kept = torch.zeros(logits.shape[-1], dtype=torch.bool)
        # Of tokens without any probability, none is ever drawn, whether a filter keeps it or not.
        kept[[token for token in possible if draw.keeps(token)]] = True
        wanted = expected[row] & (probabilities > 0)
        if sampling.top_k:
            wanted &= draw._scores > -math.inf
            kept &= draw._scores > -math.inf
        assert same_but_for_ties(kept[None], wanted[None], logits[row : row + 1])


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 128, 129, 300, 5000])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_only_kept_tokens_are_drawn(setting: dict[str, Any], vocabulary: int) -> None:
    logits = random_logits("ties" if vocabulary % 2 else "plain", 4, vocabulary)
    sampling = Sampling(**setting)
    expected = warped(logits, sampling)
    tied = [set(expected[row][expected[row] > -math.inf].tolist()) for row in range(4)]
    for seed in range(8):
        samplers = [Sampler(Sampling(**setting, seed=seed + 100 * row)) for row in range(4)]
        for row, choice in enumerate(Chooser().choose(samplers, logits, range(4), [0] * 4)):
            assert isinstance(choice, ChosenToken)
            score = float(logits[row, choice.token] / sampling.temperature)
            assert any(math.isclose(score, kept, rel_tol=1e-5, abs_tol=1e-6) for kept in tied[row])


@pytest.mark.parametrize("setting", [SETTINGS[i] for i in (0, 1, 2, 3, 6, 8)], ids=str)
@pytest.mark.parametrize("way", ["cpu", "sorted"])
def test_tokens_are_drawn_as_often_as_they_are_likely(setting: dict[str, Any], way: str) -> None:
    """Chi-squared over 6,000 draws of fixed seeds; the bound is five standard deviations above the mean."""
    logits, count = random_logits("plain", 1, 150), 6000
    expected = torch.softmax(warped(logits, Sampling(**setting)), -1)[0]
    samplers = [Sampler(Sampling(**setting, seed=seed)) for seed in range(count)]
    scores = (logits / setting["temperature"]).repeat(count, 1)
    # By the sort, as on a GPU.
    found = CpuDraws().draw(scores, samplers) if way == "cpu" else _draw_by_sort(scores, samplers)
    seen = Counter(found.tolist())
    assert all(expected[token] > 0 for token in seen)
    likely = [token for token in range(150) if expected[token] * count >= 5]
    rest = max(1 - sum(float(expected[token]) for token in likely), 0.0)
    terms = [(seen[token], count * float(expected[token])) for token in likely]
    if rest * count >= 5:
        terms.append((count - sum(seen[token] for token in likely), rest * count))
    squared = sum((had - wanted) ** 2 / wanted for had, wanted in terms)
    freedom = max(len(terms) - 1, 1)
    assert squared < freedom + 5 * math.sqrt(2 * freedom)


def test_rows_whose_ties_reach_further_than_is_collected() -> None:
    """All tokens tie with the k-th: all are kept, as Hugging Face keeps them."""
    logits = torch.zeros(1, 5000)
    drawn = {
        int(CpuDraws().draw(logits.clone(), [Sampler(Sampling(temperature=1, top_k=3, seed=seed))]))
        for seed in range(300)
    }
    # The first so many of top-k and its ties are 80.
    assert len(drawn) > 200


@pytest.mark.parametrize("difference", [-1e-6, 1e-6])
@pytest.mark.parametrize("min_p", [0.5, 0.1])
def test_tokens_at_the_edge_of_min_p(min_p: float, difference: float) -> None:
    logits = torch.tensor([[0.0, math.log(min_p) + difference, -1.5, -9.0]])
    sampling = Sampling(temperature=1, min_p=min_p)
    (draw,) = draws(logits, sampling)
    expected = (warped(logits, sampling) > -math.inf)[0].tolist()
    assert [draw.keeps(token) for token in range(4)] == expected
    assert expected[1] == (difference > 0)


def test_every_token_has_a_random_number_of_its_own() -> None:
    sampler, logits = Sampler(Sampling(temperature=1, seed=3)), torch.zeros(500)
    tokens = [next_token(sampler, logits) for _ in range(50)]
    assert len(set(tokens)) > 40


def test_sorts_are_rare_and_counted() -> None:
    """Nucleus draws over distinct logits need no sort; over equal ones that the edge divides, they do."""
    few, many = CpuDraws(), CpuDraws()
    samplers = [Sampler(Sampling(temperature=1, top_p=0.9, seed=seed)) for seed in range(200)]
    few.draw(torch.randn(200, 4000, generator=torch.Generator().manual_seed(3)), samplers)
    assert (few.draws, few.sorts) == (200, 0)
    many.draw(torch.zeros(200, 4000), samplers)
    assert many.sorts == 200


def test_the_smallest_nucleus_takes_few_draws() -> None:
    """Every refused token makes all less likely ones impossible, so that the number of draws grows slowly."""
    attempts: list[int] = []

    class Counting(Sampler):
        def uniform(self, attempt: int = 0) -> float:
            attempts.append(attempt)
            return super().uniform(attempt)

    logits = torch.randn(20, 50_000, generator=torch.Generator().manual_seed(5)) / 10
    samplers = [Counting(Sampling(temperature=1, top_p=1e-6, seed=seed)) for seed in range(20)]
    assert CpuDraws().draw(logits.clone(), samplers).tolist() == logits.argmax(-1).tolist()
    assert max(attempts) < 40


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_what_weighs_nothing_is_not_picked(uniform: float) -> None:
    weights = np.zeros(300, np.float32)
    weights[[5, 140, 299]] = 0.3, 0.1, 0.6
    sums = block_sums(torch.from_numpy(weights)[None])[0]
    assert pick(weights, sums, uniform) == {0.0: 5, 0.25: 5, 0.5: 299, 1 - 2**-53: 299}[uniform]


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_repetition_penalty(penalty: float) -> None:
    logits = random_logits("forbidden", 3)
    seen = [[1, 2, 3, 3, 3], [699, 0, 698, 5, 5], [7, 7, 7, 7, 7]]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(seen), logits)
    samplers = []
    for row in seen:
        # The prompt's first three tokens, and two of the completion.
        sampler = Sampler(Sampling(repetition_penalty=penalty), row[:3])
        for token in row[3:]:
            sampler.accept(token)
        samplers.append(sampler)
    process(logits, list(enumerate(samplers)))
    assert torch.equal(logits, expected)


def test_presence_and_frequency_count_the_completion_alone() -> None:
    logits = torch.zeros(2, 10)
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [1, 1, 2])
    for token in (2, 3, 3):
        sampler.accept(token)
    process(logits, [(1, sampler)])
    assert logits[0].tolist() == [0] * 10
    assert logits[1].tolist() == [0, 0, -0.75, -1.0, 0, 0, 0, 0, 0, 0]


def test_bias_then_repetition_then_frequency() -> None:
    """The order of Hugging Face and vLLM: a bias is penalised too."""
    logits = torch.tensor([[1.0, -1.0, 4.0]])
    sampler = Sampler(
        Sampling(logit_bias={0: 3, 2: -math.inf}, repetition_penalty=2.0, frequency_penalty=1.0), [1]
    )
    sampler.accept(0)
    process(logits, [(0, sampler)])
    assert logits.tolist() == [[(1 + 3) / 2 - 1, -2.0, -math.inf]]


def test_tokens_that_have_no_logit_change_no_other_row() -> None:
    """A prompt may have tokens that a model embeds and has no logits for."""
    logits = torch.ones(2, 4)
    sampler = Sampler(Sampling(repetition_penalty=2.0, logit_bias={5: 9.0}), [1, 4, 5])
    process(logits, [(0, sampler)])
    assert logits.tolist() == [[1, 0.5, 1, 1], [1, 1, 1, 1]]


def test_counts_grow_with_the_completion() -> None:
    sampler = Sampler(Sampling(repetition_penalty=1.1), [9, 9, 4])
    for token in [*range(100), 4, 4]:
        sampler.accept(token)
    assert sampler.counts is not None
    found = dict(zip(sampler.counts.tokens.tolist(), sampler.counts.counts.tolist()))
    assert found == {**dict.fromkeys(range(100), 1), 4: 3}


def test_logits_of_no_token_are_forbidden_by_a_constraint() -> None:
    """A head may be wider than the tokenizer's vocabulary."""

    class OddTokens(GrammarState):
        def __init__(self) -> None:
            pass

        def mask(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
            return np.array([0b10101010, 0b00000010], np.uint8)

    logits = torch.ones(2, 20)
    process(logits, [(1, Sampler(Sampling(), grammar=OddTokens()))])
    assert logits[0].tolist() == [1] * 20
    assert [token for token in range(20) if logits[1, token] == 1] == [1, 3, 5, 7, 9]
    assert logits[1].isinf().sum() == 15
