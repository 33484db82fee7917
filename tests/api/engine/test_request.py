"""What a request may hold: anything else is refused before it is queued, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kvtrie.api import PrefixCachedModel, Request, Sampling
from kvtrie.prefix_tree import InputError, Namespace, Root
from tests.api.balance import assert_balanced, wrapped
from tests.api.lower_tiers import small_model


@pytest.fixture(scope="module")
def cached() -> Iterator[PrefixCachedModel]:
    with wrapped(small_model()) as wrapper:
        yield wrapper


@pytest.fixture
def root(cached: PrefixCachedModel) -> Root:
    return cached._roots(None)[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tokens": np.array([[1, 2], [3, 4]])}, "one-dimensional, got shape (2, 2)"),
        ({"tokens": torch.tensor([[1, 2, 3]])}, "one-dimensional, got shape (1, 3)"),
        ({"tokens": np.array([1.5, 2.5])}, "integers, got float64"),
        ({"tokens": [1, True]}, "bools among them"),
        ({"tokens": np.array([1, 2], object)}, "integers, got object"),
        ({"tokens": np.array([1, 2**32 + 1])}, f"token id {2**32 + 1} is outside"),
        ({"tokens": [1, -1]}, "token id -1 is outside"),
        ({"tokens": "text"}, "one-dimensional, got str"),
        ({"tokens": None}, "one-dimensional, got NoneType"),
        ({"tokens": torch.ones(3, device="meta", dtype=torch.long)}, "got Tensor"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1, got -3"),
        ({"max_new_tokens": -1, "prefill_only": True}, "max_new_tokens must be at least 0, got -1"),
        ({"max_new_tokens": 4.0}, "max_new_tokens must be a whole number, got 4.0"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens must be a whole number, got nan"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, got True"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number, got None"),
        ({"max_new_tokens": "4"}, "max_new_tokens must be a whole number, got '4'"),
        ({"eos": 7}, "eos must be a collection of token ids, e.g. {2}, got 7"),
        ({"eos": None}, "eos must be a collection of token ids"),
        ({"eos": torch.tensor(7)}, "eos must be a collection of token ids"),
        ({"eos": "</s>"}, "a token id in eos must be a whole number, got '<'"),
        ({"eos": [2.0]}, "a token id in eos must be a whole number, got 2.0"),
        ({"eos": [[2]]}, "a token id in eos must be a whole number, got [2]"),
        ({"sampling": {"temperature": 1.0}}, "sampling must be a Sampling, got {'temperature': 1.0}"),
        ({"sampling": None}, "sampling must be a Sampling, got None"),
        ({"sampling": 0.7}, "sampling must be a Sampling, got 0.7"),
        ({"root": "tenant:a"}, "must be roots of a tree, got 'tenant:a'"),
        ({"readable": ["shared:a"]}, "must be roots of a tree, got 'shared:a'"),
        ({"readable": None}, "must be roots of a tree, got None"),
        ({"prefill_only": 1}, "prefill_only must be True or False, got 1"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_no_request(root: Root, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Request(**{"tokens": [1, 2], "root": root, **fields})


@pytest.mark.parametrize(
    "tokens", [[5, 6], (5, 6), range(5, 7), torch.tensor([5, 6]), np.array([5, 6], np.uint8)]
)
def test_whatever_is_passed_for_tokens_becomes_int32(root: Root, tokens: Any) -> None:
    request = Request(tokens, root)
    assert request.tokens.dtype == np.int32
    assert request.tokens.tolist() == [5, 6]


@pytest.mark.parametrize("eos", [{7}, [7], (7,), np.array([7]), torch.tensor([7]), frozenset({7})], ids=str)
def test_any_collection_of_tokens_ends_a_completion(root: Root, eos: Any) -> None:
    assert Request([5], root, eos=eos).eos == frozenset({7})


def test_whole_numbers_of_any_type(root: Root) -> None:
    assert Request([5], root, max_new_tokens=np.int16(3)).max_new_tokens == 3  # type: ignore[arg-type, list-item]
    assert Request([5], root, max_new_tokens=torch.tensor(3)).max_new_tokens == 3  # type: ignore[arg-type, list-item]


def test_a_root_of_another_tree(cached: PrefixCachedModel, root: Root) -> None:
    """It would never be found, and what hangs below it would be nobody's."""
    with wrapped(small_model()) as other:
        for fields in {"root": root}, {"root": other._roots(None)[0], "readable": [root]}:
            with pytest.raises(
                InputError, match="root of scope tenant:default belongs to another wrapper's tree"
            ):
                other.engine.submit(Request([5, 6], **fields))
        assert other.engine.idle
    own = cached.engine.memory.tree.root(Namespace("tenant:b", weights="", adapter="", chunk_tokens=8))
    with pytest.raises(InputError, match="tenant:b"), wrapped(small_model()) as other:
        other.engine.submit(Request([5, 6], own))


def test_a_refused_request_leaves_nothing(cached: PrefixCachedModel) -> None:
    before = cached.stats().get("requests", 0)
    for arguments in {"max_new_tokens": 0}, {"sampling": "hot"}, {"max_new_tokens": 10**9}:
        with pytest.raises(InputError):
            cached.submit([5, 6], **arguments)
    assert cached.stats().get("requests", 0) == before
    assert_balanced(cached)
    assert Sampling() == Sampling(temperature=0)
