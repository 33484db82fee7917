"""What `generate` returns in a cache's place: going on from it is right, or one clear sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.api.huggingface.generate_arguments import cache_argument
from kvtrie.prefix_tree.errors import InputError
from tests.api.balance import CHUNK, wrapped
from tests.api.tiny_models import left_padded, prompts, tiny_model

PLAIN = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
FIRST = {**PLAIN, "return_dict_in_generate": True}
QUESTION = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model) as wrapper:
        yield wrapper


def turn(generate: Any, ids: torch.Tensor, name: str, cache: Any = None) -> Any:
    return generate(ids, **FIRST, **({} if cache is None else {name: cache}))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_chat_of_three_turns(model: PreTrainedModel, cached: PrefixCachedModel, name: str) -> None:
    """Under the name transformers gives it now, and the one of before."""
    ours = theirs = None
    field = cache_argument(model)
    ids = torch.tensor(prompts([2 * CHUNK + 3]))
    for _ in range(3):
        before = cached.stats().get("cached_tokens", 0)
        expected = turn(model.generate, ids, field, None if theirs is None else theirs[field])
        found = turn(cached.generate, ids, name, None if ours is None else ours[field])
        assert torch.equal(found.sequences, expected.sequences)
        assert found[field].get_seq_length() == expected[field].get_seq_length()
        if ours is not None:
            assert cached.stats()["cached_tokens"] - before >= (ids.shape[1] - 4) // CHUNK * CHUNK
        ours, theirs = found, expected
        ids = torch.cat([found.sequences, QUESTION], dim=1)


def test_a_padded_batch(model: PreTrainedModel, cached: PrefixCachedModel) -> None:
    batch = left_padded(prompts([20, 7, 13]))
    field = cache_argument(model)
    first = cached.generate(**batch, **FIRST)
    ids = torch.cat([first.sequences, QUESTION.expand(3, 3)], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, ids.shape[1] - 20, dtype=torch.long)], dim=1)
    found = cached.generate(ids, attention_mask=mask, **PLAIN, **{field: first[field]})
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **PLAIN))


@pytest.mark.parametrize("beams", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_the_best_beams(model: PreTrainedModel, cached: PrefixCachedModel, beams: dict[str, int]) -> None:
    batch = left_padded(prompts([20, 13]))
    field = cache_argument(model)
    first = cached.generate(**batch, **FIRST, **beams)
    count = first.sequences.shape[0]
    ids = torch.cat([first.sequences, QUESTION.expand(count, 3)], dim=1)
    mask = batch["attention_mask"].repeat_interleave(count // 2, 0)
    mask = torch.cat([mask, torch.ones(count, ids.shape[1] - 20, dtype=torch.long)], dim=1)
    found = cached.generate(ids, attention_mask=mask, **PLAIN, **{field: first[field]})
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **PLAIN))


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (QUESTION, "row 0 does not begin with the 25 tokens of the returned cache; pass the whole sequence"),
        (torch.tensor([[9] * 30]), "row 0 does not begin with the 25 tokens of the returned cache"),
        (torch.tensor([[9] * 30] * 2), "of 1 rows and the prompt has 2"),
    ],
)
def test_prompts_that_do_not_go_on_from_it(cached: PrefixCachedModel, ids: torch.Tensor, says: str) -> None:
    field = cache_argument(cached.model)
    first = cached.generate(torch.tensor(prompts([20])), **FIRST)
    with pytest.raises(InputError, match=says):
        cached.generate(ids, **PLAIN, **{field: first[field]})


def test_the_model_itself_says_what_it_was_given(model: PreTrainedModel, cached: PrefixCachedModel) -> None:
    field = cache_argument(model)
    first = cached.generate(torch.tensor(prompts([20])), **FIRST)
    ids = torch.cat([first.sequences, QUESTION], dim=1)
    with pytest.raises(InputError, match=r"holds no KV: pass it to PrefixCachedModel\.generate"):
        model.generate(ids, **PLAIN, **{field: first[field]})
    with pytest.raises(InputError, match="holds no KV"):
        model(ids, **{field: first[field]})


def test_it_outlives_the_chunks(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    field = cache_argument(model)
    first = cached.generate(torch.tensor(prompts([20])), **FIRST)
    memory = cached.engine.memory
    with cached.engine.lock:
        taken = memory.take("tenant:default", memory.pool.slots)
        assert taken is not None
        memory.give("tenant:default", taken)
    ids = torch.cat([first.sequences, QUESTION], dim=1)
    found = cached.generate(ids, **PLAIN, **{field: first[field]})
    assert torch.equal(found, model.generate(ids, **PLAIN))
