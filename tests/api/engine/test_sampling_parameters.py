"""What `Sampling` and `fan_out` refuse, in one sentence each, before anything is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kvtrie.api import PrefixCachedModel, Request, Sampling
from kvtrie.api.engine.sampling.fan_out import fan_out
from kvtrie.api.engine.sampling.uniforms import derived_seed, uniform
from kvtrie.prefix_tree import InputError
from tests.api.balance import wrapped
from tests.api.lower_tiers import small_model


@pytest.fixture(scope="module")
def cached() -> Iterator[PrefixCachedModel]:
    with wrapped(small_model()) as wrapper:
        yield wrapper


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"min_p": 1.1}, "min_p must be from 0 to 1, got 1.1"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, got -0.1"),
        ({"min_p": "0.1"}, "min_p must be a number, got '0.1'"),
        ({"min_p": math.nan}, "min_p must be finite, got nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty must be above 0"),
        ({"repetition_penalty": None}, "repetition_penalty must be a number, got None"),
        ({"presence_penalty": 2.5}, "presence_penalty must be from -2 to 2, got 2.5"),
        ({"frequency_penalty": -3}, "frequency_penalty must be from -2 to 2, got -3"),
        ({"frequency_penalty": True}, "frequency_penalty must be a number, got True"),
        ({"logit_bias": 3}, "logit_bias must map token ids to numbers, e.g. {50256: -100}, got 3"),
        ({"logit_bias": "ab"}, "logit_bias must map token ids to numbers"),
        ({"logit_bias": [3]}, "logit_bias must map token ids to numbers, got 3 in it"),
        ({"logit_bias": {"3": 1.0}}, "a token id in logit_bias must be a whole number, got '3'"),
        ({"logit_bias": {3: math.inf}}, "the bias of token 3 must be finite, got inf"),
        ({"logit_bias": {3: math.nan}}, "the bias of token 3 must be finite, got nan"),
        ({"logit_bias": {3: "1"}}, "the bias of token 3 must be a number, got '1'"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, or None, got 21"),
        ({"logprobs": -1}, "logprobs must be from 0 to 20"),
        ({"logprobs": True}, "logprobs must be a whole number, got True"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a collection of token ids, e.g. {2}, got 5"),
        ({"stop_token_ids": ["a"]}, "a token id in stop_token_ids must be a whole number, got 'a'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, got -1"),
        ({"min_tokens": 1.0}, "min_tokens must be a whole number, got 1.0"),
        ({"constraint": "[0-9]"}, "constraint must be a JsonSchema or a Regex, got '[0-9]'"),
    ],
    ids=str,
)
def test_what_is_no_sampling(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Sampling(**setting)


def test_numbers_of_any_type_become_python_s() -> None:
    found = Sampling(
        min_p=np.float32(0.5),  # type: ignore[arg-type]
        repetition_penalty=2,
        logit_bias={np.int64(7): 1, 3: -math.inf},  # type: ignore[dict-item]
        stop_token_ids=torch.tensor([4, 5]),  # type: ignore[arg-type]
        logprobs=np.int8(3),  # type: ignore[arg-type]
    )
    assert found.logit_bias == ((3, -math.inf), (7, 1.0))
    assert found.stop_token_ids == {4, 5}
    assert [type(value) for value in (found.min_p, found.repetition_penalty, found.logprobs)] == [
        float,
        float,
        int,
    ]
    assert hash(found) == hash(
        Sampling(
            min_p=0.5, repetition_penalty=2.0, logit_bias=found.logit_bias, stop_token_ids=(5, 4), logprobs=3
        )
    )


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"logit_bias": {10**6: 1.0}}, "token id 1000000 in logit_bias is outside the vocabulary of"),
        ({"logit_bias": {-1: 1.0}}, "token id -1 in logit_bias is outside the vocabulary of"),
        ({"stop_token_ids": [10**6]}, "token id 1000000 in stop_token_ids is outside the vocabulary of"),
    ],
    ids=str,
)
def test_tokens_outside_the_vocabulary(cached: PrefixCachedModel, setting: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        cached.submit([5, 6], sampling=Sampling(**setting))
    assert cached.engine.idle


@pytest.mark.parametrize("stop", [5, ["a", 5], [""], "", None, [None]], ids=str)
def test_what_is_no_stop_string(cached: PrefixCachedModel, stop: Any) -> None:
    with pytest.raises(InputError, match="stop must be strings of at least one character"):
        Request([5], cached._roots(None)[0], stop=stop, tokenizer=object())


def test_stop_strings_need_a_tokenizer(cached: PrefixCachedModel) -> None:
    with pytest.raises(InputError, match="stop strings need a tokenizer; pass one"):
        cached.submit([5], stop="end")


def test_copies_of_a_request(cached: PrefixCachedModel) -> None:
    request = Request([5, 6], cached._roots(None)[0], sampling=Sampling(temperature=1, seed=7))
    copies = fan_out(request, 4)
    assert [one.sampling.seed for one in copies] == [7, *(derived_seed(7, copy) for copy in (1, 2, 3))]
    assert len({one.sampling.seed for one in copies}) == 4
    assert copies[0] == request
    assert [one.sampling.seed for one in fan_out(request, 2)] == [one.sampling.seed for one in copies[:2]]
    unseeded = Request([5, 6], cached._roots(None)[0], sampling=Sampling(temperature=1))
    assert [one.sampling.seed for one in fan_out(unseeded, 2)] == [None, None]


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None], ids=str)
def test_what_is_no_number_of_copies(cached: PrefixCachedModel, n: Any) -> None:
    with pytest.raises(InputError, match="n must be"):
        fan_out(Request([5], cached._roots(None)[0]), n)


def test_copies_of_a_bare_prefill(cached: PrefixCachedModel) -> None:
    request = Request([5], cached._roots(None)[0], max_new_tokens=0, prefill_only=True)
    assert fan_out(request, 1) == (request,)
    with pytest.raises(InputError, match="n must be 1"):
        fan_out(request, 2)


def test_random_numbers_are_spread_evenly_and_differ_by_seed_place_and_attempt() -> None:
    numbers = [
        uniform(seed, place, attempt)
        for seed in (-5, 0, 2**64 - 1)
        for place in range(300)
        for attempt in range(3)
    ]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    counts = np.histogram(numbers, 10, (0, 1))[0]
    assert ((counts - 270) ** 2 / 270).sum() < 9 + 5 * math.sqrt(18)
