"""Prompts of every form become the tokens that the tokenizer itself gives, or one sentence that refuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree import InputError
from tests.api.balance import CHUNK, assert_balanced, greedy, wrapped
from tests.api.tiny_models import left_padded, prompts, tiny_model
from tests.api.tokenizers_of_each_kind import ASSISTANT, BOS, byte_level, sentencepiece_bpe

ROW = prompts([2 * CHUNK + 2])[0]
CHAT = [
    {"role": "user", "content": "The quick brown fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "the lazy dog"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    found = tiny_model("llama-gqa")
    found.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return found


@pytest.fixture
def cached(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[PrefixCachedModel]:
    with wrapped(model, tokenizer=tokenizer) as wrapper:
        yield wrapper
        assert_balanced(wrapper)


def asked(cached: PrefixCachedModel, prompt: Any) -> list[int]:
    """The tokens that `submit` asks the engine for."""
    completion = cached.submit(prompt, max_new_tokens=3, eos=())
    cached.engine.run()
    assert completion.error is None
    tokens: list[int] = completion.request.tokens.tolist()
    assert completion.tokens == greedy(cached.model, tokens, 3)
    return tokens


# ---- text and messages


def test_text_gets_the_tokenizer_s_special_tokens(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = asked(cached, "The quick brown fox")
    assert tokens == tokenizer.encode("The quick brown fox")
    assert tokens.count(tokenizer.bos_token_id) == 1


def test_a_rendered_template_gets_no_second_bos(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    right = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert text.startswith(BOS)
    assert right.count(tokenizer.bos_token_id) == 1
    assert asked(cached, text) == right
    assert "".join(map(str, cached.stream(text, max_new_tokens=6))) == "".join(
        map(str, cached.stream(CHAT, max_new_tokens=6))
    )
    warmed = cached.warm(text)
    # All there: the whole chunks, and the rest at the beginning of a chunk that the streams' tokens filled.
    assert (warmed.tokens, warmed.cached_tokens) == (len(right), len(right))


def test_messages_are_rendered_by_the_chat_template(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    right = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    opening = tokenizer.convert_tokens_to_ids(ASSISTANT)
    assert right[-1] == opening
    assert asked(cached, CHAT) == right
    assert asked(cached, tuple(CHAT)) == right
    # What is warmed may be followed by another message.
    assert cached.warm(CHAT).tokens == len(right) - 1
    assert cached.warm(CHAT[:1]).tokens == len(
        tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=False, return_dict=False)
    )


def test_messages_are_streamed_as_text() -> None:
    """In context: the reply's first word keeps the space that the tokenizer puts before it."""
    tokenizer = sentencepiece_bpe()
    model = tiny_model("llama-gqa")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    tokens = greedy(model, prompt, 12)
    text, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, prompt + tokens))
    with wrapped(model, tokenizer=tokenizer) as cached:
        assert "".join(map(str, cached.stream(CHAT, max_new_tokens=12, eos=()))) == whole[len(text) :]


def test_the_token_that_ends_a_stream_has_no_text(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Special or not: an end that the caller names is no part of the text either."""
    prompt = tokenizer.encode("the")
    tokens = greedy(cached.model, prompt, 12)
    end = tokens.index(next(token for token in tokens if token != tokens[0]))
    whole = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    assert "".join(map(str, cached.stream("the", max_new_tokens=12, eos={tokens[end]}))) == whole
    assert list(cached.stream(prompt, max_new_tokens=12, eos={tokens[end]})) == tokens[: end + 1]


def test_the_empty_text(cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """It has a BOS token, where the tokenizer gives one."""
    assert asked(cached, "") == [tokenizer.bos_token_id]


class Bare:
    """A tokenizer without special tokens and templates."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


def test_tokenizers_that_lack_what_a_prompt_needs(model: PreTrainedModel) -> None:
    with wrapped(model, tokenizer=Bare()) as cached:
        assert asked(cached, "plain") == list(b"plain")
        with pytest.raises(InputError, match="the prompt is empty"):
            cached.submit("")
        with pytest.raises(InputError, match="Bare has none"):
            cached.stream(CHAT)
    with wrapped(model) as cached, pytest.raises(InputError, match="messages needs PrefixCachedModel"):
        cached.submit(CHAT)


def test_messages_that_the_template_refuses(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system message') }}")
    with pytest.raises(InputError, match=r"chat template cannot render.*no system message"):
        cached.warm(CHAT)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InputError, match="chat template"):
        cached.submit(CHAT)


# ---- what a tokenizer returns

FORMS: dict[str, Callable[[list[int]], Any]] = {
    "list": lambda row: row,
    "tuple": tuple,
    "array": np.array,
    "array of a row": lambda row: np.array([row], np.int32),
    "tensor": torch.tensor,
    "tensor of a row": lambda row: torch.tensor([row]),
    "list of a row": lambda row: [row],
    "dict": lambda row: {"input_ids": row},
    "dict with a mask": lambda row: {
        "input_ids": torch.tensor([row]),
        "attention_mask": torch.ones(1, len(row)),
    },
    "BatchEncoding": lambda row: BatchEncoding({"input_ids": row, "attention_mask": [1] * len(row)}),
    "BatchEncoding of a row": lambda row: BatchEncoding(
        {"input_ids": [row], "attention_mask": [[1] * len(row)], "token_type_ids": [[0] * len(row)]}
    ),
    "left-padded": lambda row: {key: value[1:] for key, value in left_padded([row * 2, row]).items()},
    "left-padded lists": lambda row: {
        "input_ids": [0, 0, 0, *row],
        "attention_mask": [False, False, False] + [True] * len(row),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_token_ids(cached: PrefixCachedModel, form: str) -> None:
    prompt = FORMS[form](ROW)
    assert asked(cached, prompt) == ROW
    assert list(cached.stream(prompt, max_new_tokens=3, eos=())) == greedy(cached.model, ROW, 3)
    assert cached.warm(prompt).cached_tokens == 2 * CHUNK


@pytest.mark.parametrize("padded", [False, True])
def test_what_the_tokenizer_itself_returns(
    cached: PrefixCachedModel, tokenizer: PreTrainedTokenizerFast, padded: bool
) -> None:
    options = {"padding": "max_length", "max_length": 40, "padding_side": "left"} if padded else {}
    for tensors in (None, "pt", "np"):
        encoded = tokenizer("The quick brown fox", return_tensors=tensors, **options)
        assert asked(cached, encoded) == tokenizer.encode("The quick brown fox")


BATCH = left_padded([ROW, ROW[:9]])


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (BATCH, "input_ids holds 2 rows; pass one prompt at a time"),
        (BATCH["input_ids"], "the prompt holds 2 rows"),
        (BATCH["input_ids"].numpy(), "the prompt holds 2 rows"),
        ([ROW, ROW], "the prompt holds 2 rows"),
        ([ROW, ROW[:3]], "pass one prompt at a time"),
        (["one", "two"], "holds text; pass one prompt"),
        ([CHAT, CHAT], "pass one prompt"),
        ({"input_ids": ROW, "attention_mask": [1] * 5}, r"\(1, 5\) does not have the shape"),
        ({"input_ids": ROW, "attention_mask": [2] * len(ROW)}, "attention_mask holds 2"),
        ({"input_ids": ROW, "attention_mask": [0.5] * len(ROW)}, "attention_mask holds 0.5"),
        ({"input_ids": ROW, "attention_mask": [0] * len(ROW)}, "empty"),
        ({"input_ids": ROW, "attention_mask": [1] * (len(ROW) - 1) + [0]}, "padded on the left only"),
        ({"input_ids": ROW, "pixel_values": torch.zeros(1)}, "a prompt's pixel_values is not served"),
        ({"input_ids": None}, "needs input_ids"),
        (CHAT[0], "messages are a list"),
        (None, "got NoneType"),
        (7, "got int"),
        (b"bytes", "got bytes"),
        ({1, 2}, "got set"),
        ([1, None], "holds int"),
        (torch.tensor(5), "one-dimensional"),
        (torch.ones(4, dtype=torch.bfloat16), "integers"),
        (torch.ones(4, dtype=torch.bool), "integers"),
        (torch.ones(4, dtype=torch.long, device="meta"), "meta device"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("way", ["submit", "stream", "warm"])
def test_what_is_no_prompt(cached: PrefixCachedModel, way: str, prompt: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        getattr(cached, way)(prompt)
    assert_balanced(cached)


def test_token_types_of_a_model_that_takes_them() -> None:
    """GPT-2 adds an embedding for each: as in `generate`, they are refused."""
    with (
        wrapped(tiny_model("gpt2")) as cached,
        pytest.raises(InputError, match="token_type_ids is not served"),
    ):
        cached.submit({"input_ids": ROW, "token_type_ids": [0] * len(ROW)})
