"""What `generate` takes besides generation settings: each as transformers takes it, or one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.errors import UnsupportedModel
from tests.api.balance import assert_balanced, wrapped
from tests.api.tiny_models import left_padded, prompts, tiny_model
from tests.api.tokenizers_of_each_kind import byte_level

ROWS = prompts([30, 22], shared=16)
BATCH = left_padded(ROWS)
NEW = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    found = tiny_model("llama-gqa")
    found.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return found


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model, chunks=128) as wrapper:
        yield wrapper
        assert_balanced(wrapper)


def same(cached: PrefixCachedModel, **arguments: Any) -> torch.Tensor:
    """What plain `generate` gives, and the wrapper too, cold and warm."""
    expected: torch.Tensor = cached.model.generate(**arguments)
    for _ in range(2):
        assert torch.equal(cached.generate(**arguments), expected)
    return expected


# ---- stop strings, and whatever else the loop takes for itself


def test_stop_strings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = BATCH["input_ids"][:1]
    free = model.generate(ids, **NEW)[0, ids.shape[1] :].tolist()
    # The first token that differs from the one before it: never at once, and before the last.
    place = next(place for place in range(1, len(free)) if free[place] != free[place - 1])
    stop = {"stop_strings": [tokenizer.decode(free[place])]}
    with wrapped(model) as cached:
        stopped = same(cached, inputs=ids, tokenizer=tokenizer, **stop, **NEW)
        assert stopped.shape[1] - ids.shape[1] < len(free)
        same(cached, inputs=ids, tokenizer=tokenizer, num_beams=2, **stop, **NEW)
        same(cached, **BATCH, tokenizer=tokenizer, **stop, **NEW)
        with pytest.raises(InputError, match=r"stop_strings need .* pass tokenizer="):
            cached.generate(ids, **stop, **NEW)
        assert_balanced(cached)
    with wrapped(model, tokenizer=tokenizer) as cached:
        assert torch.equal(cached.generate(ids, **stop, **NEW), stopped), "the wrapper's tokenizer"
        config = hf.GenerationConfig(**NEW, **stop)
        assert torch.equal(cached.generate(ids, config), stopped)
    with wrapped(model, tokenizer=object()) as cached:
        assert torch.equal(cached.generate(ids, tokenizer=tokenizer, **stop, **NEW), stopped)


class Noting(hf.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.tolist())

    def end(self) -> None:
        self.given.append("end")


def test_streamers(cached: PrefixCachedModel) -> None:
    ids = BATCH["input_ids"][:1]
    plain, ours = Noting(), Noting()
    cached.model.generate(ids, streamer=plain, **NEW)
    cached.generate(ids, streamer=ours, **NEW)
    assert ours.given == plain.given
    assert len(plain.given) > 12


class Louder(hf.LogitsProcessor):  # type: ignore[misc]
    """Adds to every seventh token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + 50.0 * (torch.arange(scores.shape[1]) % 7 == 0)


LOOP: dict[str, Callable[[Any], dict[str, Any]]] = {
    "tokenizer alone": lambda tokenizer: {"tokenizer": tokenizer},
    "synced_gpus": lambda tokenizer: {"synced_gpus": False},
    "trust_remote_code": lambda tokenizer: {"trust_remote_code": False},
    "logits_processor": lambda tokenizer: {"logits_processor": hf.LogitsProcessorList([Louder()])},
    "stopping_criteria": lambda tokenizer: {
        "stopping_criteria": hf.StoppingCriteriaList([hf.MaxTimeCriteria(1000.0)])
    },
    "prefix_allowed_tokens_fn": lambda tokenizer: {
        "prefix_allowed_tokens_fn": lambda row, ids: [3 + int(ids[-1]) % 200, 7]
    },
    "negative prompts": lambda tokenizer: {
        "guidance_scale": 1.5,
        "negative_prompt_ids": torch.tensor([[5, 6, 7], [8, 9, 10]]),
        "negative_prompt_attention_mask": torch.ones(2, 3, dtype=torch.long),
    },
    "logits_to_keep": lambda tokenizer: {"logits_to_keep": 0},
}


@pytest.mark.parametrize("name", LOOP)
def test_arguments_of_the_loop(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    same(cached, **BATCH, **LOOP[name](tokenizer), **NEW)


def test_assistants_with_a_tokenizer_of_their_own(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    draft, other = tiny_model("llama-mha", seed=3), byte_level()
    # Transformers takes two tokenizers only where the vocabularies differ in size.
    draft.resize_token_embeddings(len(other) + 8, mean_resizing=False)
    draft.generation_config.num_assistant_tokens = 3
    ids = tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    same(cached, inputs=ids, assistant_model=draft, tokenizer=tokenizer, assistant_tokenizer=other, **NEW)


def test_a_wrapper_as_the_assistant(cached: PrefixCachedModel) -> None:
    with pytest.raises(UnsupportedModel, match=r"got PrefixCachedModel.*pass its \.model"):
        cached.generate(**BATCH, assistant_model=cached, **NEW)


# ---- masks

KEPT = BATCH["attention_mask"]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.float32, torch.float64], ids=str
)
def test_masks_of_zeros_and_ones_of_any_dtype(cached: PrefixCachedModel, dtype: torch.dtype) -> None:
    expected = cached.model.generate(**BATCH, **NEW)
    for _ in range(2):
        found = cached.generate(BATCH["input_ids"], attention_mask=KEPT.to(dtype), **NEW)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (2 * KEPT, "attention_mask holds 2"),
        (-KEPT, "attention_mask holds -1"),
        (KEPT - 1, "attention_mask holds -1"),
        (KEPT * 0.5, "attention_mask holds 0.5"),
        (KEPT.float() + 1e-3, "attention_mask holds"),
        (KEPT.float().masked_fill(KEPT == 0, -torch.inf), "attention_mask holds -inf"),
        (KEPT.float().masked_fill(KEPT == 0, torch.nan), "attention_mask holds nan"),
        (KEPT[:, None, None, :].expand(2, 1, 30, 30), "does not have the shape"),
        (KEPT[0], "does not have the shape"),
        (KEPT.tolist(), "must be a tensor, got list"),
        (KEPT.to("meta"), "attention_mask is on meta, the model is on cpu"),
    ],
    ids=range(11),
)
def test_masks_of_anything_else(cached: PrefixCachedModel, mask: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        cached.generate(BATCH["input_ids"], attention_mask=mask, **NEW)
    assert_balanced(cached)
    assert cached.stats()["device"]["used_bytes"] == 0


# ---- prompts


def test_no_prompt_begins_with_bos(cached: PrefixCachedModel) -> None:
    expected = same(cached, **NEW)
    assert expected[0, 0] == cached.model.generation_config.bos_token_id
    same(cached, inputs=None, bos_token_id=9, **NEW)
    # The batch is that of the mask.
    same(cached, attention_mask=torch.ones(3, 1, dtype=torch.long), **NEW)
    config = hf.GenerationConfig(**NEW, bos_token_id=11)
    assert cached.generate(generation_config=config)[0, 0] == 11


def test_no_prompt_and_no_bos(cached: PrefixCachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached.model.generation_config, "bos_token_id", None)
    with pytest.raises(InputError, match=r"no input_ids, and bos_token_id.* is None"):
        cached.generate(**NEW)


@pytest.mark.parametrize(
    "dtype", [torch.int16, torch.uint8, torch.bool, torch.float32, torch.complex64], ids=str
)
def test_ids_that_an_embedding_does_not_take(cached: PrefixCachedModel, dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=str(dtype).removeprefix("torch.")):
        cached.generate(torch.tensor([[5, 6, 7]]).to(dtype), **NEW)


def test_ids_of_32_bits(cached: PrefixCachedModel) -> None:
    same(cached, inputs=BATCH["input_ids"].int(), attention_mask=KEPT, **NEW)


@pytest.mark.parametrize(
    "prompt", ["text", ROWS, [{"role": "user", "content": "x"}]], ids=["text", "list", "messages"]
)
def test_prompts_that_transformers_does_not_take(cached: PrefixCachedModel, prompt: Any) -> None:
    with pytest.raises(InputError, match=rf"integer tensor.*got {type(prompt).__name__}"):
        cached.generate(prompt, **NEW)
