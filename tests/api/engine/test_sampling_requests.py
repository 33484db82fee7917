"""Whole requests: the same tokens as Hugging Face's `generate`, whatever is cached and whatever is in the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from kvtrie.api import Completion, PrefixCachedModel, Sampling
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.choose import Chooser, ChosenToken
from kvtrie.api.engine.sampling.fan_out import fan_out
from kvtrie.api.engine.sampling.grammar import GrammarState
from kvtrie.prefix_tree.errors import ModelOutputError
from tests.api.balance import CHUNK, complete, greedy, run_to_the_end, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

NEW = 2 * CHUNK + 3
ROWS = prompts([5 * CHUNK + 3, 3 * CHUNK, 4 * CHUNK + 1], shared=2 * CHUNK)


@pytest.fixture(scope="module")
def cached() -> Iterator[PrefixCachedModel]:
    with wrapped(small_model()) as wrapper:
        yield wrapper


def generated(model: Any, row: list[int], **options: Any) -> list[int]:
    """Plain Hugging Face's tokens after `row`."""
    options = {"eos_token_id": None, "do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, **options}
    with torch.no_grad():
        found: list[int] = model.generate(torch.tensor([row]), **options)[0, len(row) :].tolist()
    return found


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
        (
            {"logit_bias": {9: 4.0, 40: -3.0}, "repetition_penalty": 1.5},
            {"sequence_bias": [[[9], 4.0], [[40], -3.0]], "repetition_penalty": 1.5},
        ),
        ({"temperature": 1e-20, "repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"temperature": 1.0, "top_k": 1}, {}),
        ({"temperature": 1.0, "top_p": 1e-9}, {}),
        ({"temperature": 1.0, "min_p": 1.0, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ],
    ids=str,
)
def test_the_tokens_of_generate(
    cached: PrefixCachedModel, setting: dict[str, Any], options: dict[str, Any]
) -> None:
    """Twice: penalties see the tokens of a prompt that comes from the cache, too."""
    expected = [generated(cached.model, row, **options) for row in ROWS]
    assert expected != [generated(cached.model, row) for row in ROWS] or not options
    for _ in range(2):
        completions = complete(cached, *ROWS, new=NEW, sampling=Sampling(**setting))
        assert [one.tokens for one in completions] == expected
    assert completions[0].cached_tokens > CHUNK


def test_min_tokens_and_eos(cached: PrefixCachedModel) -> None:
    row = ROWS[0]
    plain = greedy(cached.model, row, NEW)
    eos = plain[4]
    first = plain.index(eos) + 1
    for least in (0, first, first + 5):
        expected = generated(cached.model, row, eos_token_id=eos, min_new_tokens=least)
        completion = cached.submit(row, max_new_tokens=NEW, eos={eos}, sampling=Sampling(min_tokens=least))
        run_to_the_end(cached)
        assert completion.tokens == expected
        assert completion.finish_reason == ("stop" if eos == expected[-1] else "length")


def test_stop_tokens_and_ignore_eos(cached: PrefixCachedModel) -> None:
    row = ROWS[0]
    plain = greedy(cached.model, row, NEW)
    eos, stop = plain[3], plain[6]
    assert eos != stop

    def run(**setting: Any) -> Completion:
        completion = cached.submit(row, max_new_tokens=NEW, eos={eos}, sampling=Sampling(**setting))
        run_to_the_end(cached)
        return completion

    ended = run()
    assert (ended.tokens, ended.stopped_by) == (plain[: plain.index(eos) + 1], eos)
    ignored = run(ignore_eos=True)
    assert (ignored.tokens, ignored.finish_reason, ignored.stopped_by) == (plain, "length", None)
    stopped = run(ignore_eos=True, stop_token_ids=[stop])
    assert (stopped.tokens, stopped.finish_reason) == (plain[: plain.index(stop) + 1], "stop")
    assert stopped.stopped_by == stop


def test_presence_and_frequency_penalties_as_openai_defines_them(cached: PrefixCachedModel) -> None:
    """`mu[j] - c[j] * frequency - (c[j] > 0) * presence`, c counting the completion."""
    row = ROWS[1]

    class Subtract:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            counts = torch.bincount(input_ids[0, len(row) :], minlength=scores.shape[-1])
            return scores - counts * 1.1 - (counts > 0) * 0.7

    expected = generated(cached.model, row, logits_processor=LogitsProcessorList([Subtract()]))
    assert expected != greedy(cached.model, row, NEW)
    sampling = Sampling(frequency_penalty=1.1, presence_penalty=0.7)
    assert complete(cached, row, new=NEW, sampling=sampling)[0].tokens == expected


MIXED = [
    Sampling(),
    Sampling(temperature=1.2, seed=3),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, seed=4),
    Sampling(temperature=0.9, top_p=0.8, min_p=0.02, seed=5, logprobs=2),
    Sampling(repetition_penalty=1.3, logprobs=5),
    Sampling(temperature=1.5, presence_penalty=0.5, frequency_penalty=0.3, seed=6),
    Sampling(temperature=1.1, top_k=100, logit_bias={5: 2.0}, seed=7),
    Sampling(temperature=1.0, min_p=0.1, seed=8, logprobs=0),
]


def test_a_request_has_the_same_tokens_alone_and_in_any_batch(cached: PrefixCachedModel) -> None:
    alone = [complete(cached, ROWS[i % 3], new=NEW, sampling=one)[0].tokens for i, one in enumerate(MIXED)]
    for order in (range(len(MIXED)), reversed(range(len(MIXED)))):
        places = list(order)
        together = [cached.submit(ROWS[i % 3], max_new_tokens=NEW, sampling=MIXED[i], eos=()) for i in places]
        run_to_the_end(cached)
        assert [one.tokens for one in together] == [alone[i] for i in places]


def test_preemption_repeats_no_draw(cached: PrefixCachedModel) -> None:
    """The youngest is preempted after every second step, and all of them at times."""
    expected = [complete(cached, ROWS[i % 3], new=NEW, sampling=one)[0] for i, one in enumerate(MIXED)]
    found = [
        cached.submit(ROWS[i % 3], max_new_tokens=NEW, sampling=one, eos=()) for i, one in enumerate(MIXED)
    ]
    steps = 0
    while not cached.engine.idle:
        cached.engine.step()
        steps += 1
        if steps % 2 == 0:
            cached.engine._make_way()
        while steps % 11 == 0 and cached.engine._make_way():
            pass
    assert sum(one.preemptions for one in found) > 20
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [len(one.logprobs) for one in found] == [len(one.logprobs) for one in expected]


def test_several_completions_of_one_prompt(cached: PrefixCachedModel) -> None:
    request = cached.submit(ROWS[0], max_new_tokens=NEW, sampling=Sampling(temperature=1.5, seed=1), eos=())
    run_to_the_end(cached)
    for _ in range(2):
        found = [cached.engine.submit(one) for one in fan_out(request.request, 3)]
        run_to_the_end(cached)
        assert found[0].tokens == request.tokens
        assert len({tuple(one.tokens) for one in found}) == 3
        assert found[2].cached_tokens >= len(ROWS[0]) // CHUNK * CHUNK - CHUNK


def test_logprobs_are_the_model_s_own(cached: PrefixCachedModel) -> None:
    """Before penalties, bias and temperature, as vLLM's are."""
    row = ROWS[2]
    sampling = Sampling(temperature=1.7, repetition_penalty=1.5, logit_bias={3: 2.0}, logprobs=20, seed=2)
    (completion,) = complete(cached, row, new=6, sampling=sampling)
    with torch.no_grad():
        logits = cached.model(torch.tensor([row + completion.tokens])).logits[0].float()
    expected = torch.log_softmax(logits[len(row) - 1 : -1], -1)
    assert len(completion.logprobs) == 6
    for place, (token, found) in enumerate(zip(completion.tokens, completion.logprobs)):
        assert found.token == token
        assert math.isclose(found.logprob, float(expected[place, token]), abs_tol=1e-4)
        top = expected[place].topk(20)
        assert [one.token for one in found.top] == top.indices.tolist()
        torch.testing.assert_close(
            torch.tensor([one.logprob for one in found.top]), top.values, atol=1e-4, rtol=0
        )


def test_greedy_requests_report_logprobs_too(cached: PrefixCachedModel) -> None:
    some, none, silent = (
        cached.submit(ROWS[0], max_new_tokens=3, sampling=Sampling(logprobs=count), eos=())
        for count in (2, 0, None)
    )
    run_to_the_end(cached)
    assert [len(found.top) for found in some.logprobs] == [2, 2, 2]
    assert [found.top[0].token for found in some.logprobs] == some.tokens
    assert [found.top[0].logprob for found in some.logprobs] == [found.logprob for found in none.logprobs]
    assert [found.top for found in none.logprobs] == [()] * 3
    assert silent.logprobs == []


class Failing(GrammarState):
    """A constraint that fails at its third token."""

    def __init__(self) -> None:
        self.left = 2

    def mask(self) -> Any:
        if not self.left:
            raise ModelOutputError("the constraint failed: too complex")
        self.left -= 1
        return torch.full((64,), 255, dtype=torch.uint8).numpy()

    def accept(self, token: int) -> None:
        pass

    @property
    def is_complete(self) -> bool:
        return False


def test_a_row_that_fails_ends_its_request_alone(cached: PrefixCachedModel) -> None:
    expected = [complete(cached, ROWS[i % 3], new=NEW, sampling=one)[0].tokens for i, one in enumerate(MIXED)]
    found = [
        cached.submit(ROWS[i % 3], max_new_tokens=NEW, sampling=one, eos=()) for i, one in enumerate(MIXED)
    ]
    bad = cached.submit(ROWS[1], max_new_tokens=NEW, eos=())
    assert bad in cached.engine.under_way()  # taken in from the inbox
    next(job for job in cached.engine._scheduler.jobs if job.completion is bad).grammar = Failing()
    run_to_the_end(cached)
    assert isinstance(bad.error, ModelOutputError)
    assert len(bad.tokens) == 2
    assert [one.tokens for one in found] == expected


def test_all_tokens_forbidden(cached: PrefixCachedModel) -> None:
    """A mixture of settings that leaves nothing to choose ends that request, greedy or not."""
    nothing = dict.fromkeys(range(cached.engine._steps.runner.vocabulary), -math.inf)
    drawn = {"temperature": 1.0, "seed": 1}
    settings: Sequence[dict[str, Any]] = [
        {},
        drawn,
        {**drawn, "top_k": 3},
        {**drawn, "top_k": 150},
        {**drawn, "top_p": 0.5},
        {**drawn, "min_p": 0.5, "temperature": 1e300},
    ]
    bad = [
        cached.submit(ROWS[0], max_new_tokens=4, sampling=Sampling(logit_bias=nothing, **setting), eos=())
        for setting in settings
    ]
    good = cached.submit(ROWS[0], max_new_tokens=4, eos=())
    run_to_the_end(cached)
    for one in bad:
        assert "no token may be chosen" in str(one.error)
        assert one.tokens == []
    assert good.tokens == greedy(cached.model, ROWS[0], 4)


def test_choosing_changes_neither_logits_nor_samplers() -> None:
    """A captured step's logits are a buffer that the next replay reads nothing from, but a failed batch is chosen
    again, row by row."""
    logits = torch.randn(len(MIXED), 300, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    samplers = [Sampler(one, [1, 2, 3]) for one in MIXED]
    rows = range(len(MIXED))
    likeliest = logits.argmax(-1).tolist()
    found = [Chooser().choose(samplers, logits, rows, likeliest) for _ in range(2)]
    assert found[0] == found[1]
    assert torch.equal(logits, before)
    for row, choice in enumerate(found[0]):
        assert isinstance(choice, ChosenToken)
        assert Chooser().choose([samplers[row]], logits, [row], [likeliest[row]]) == [choice]


def test_steps_inside_and_outside_of_inference_mode(cached: PrefixCachedModel) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=1, repetition_penalty=1.1)
    with torch.inference_mode():
        (first,) = complete(cached, ROWS[0], sampling=sampling)
    (second,) = complete(cached, ROWS[0], sampling=sampling)
    assert first.error is None and second.error is None
    assert first.tokens == second.tokens
