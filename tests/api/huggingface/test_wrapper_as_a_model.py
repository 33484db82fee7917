"""A wrapper where a model is expected, models that are not what they were, and heads that lack an argument."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.api.huggingface.generate_arguments import CACHE_ARGUMENTS
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.errors import UnsupportedModel
from tests.api.balance import CHUNK, assert_same, complete, greedy, wrapped
from tests.api.tiny_models import VOCABULARY, left_padded, prompts, tiny_model
from tests.api.tokenizers_of_each_kind import byte_level

ROW = prompts([3 * CHUNK + 2])[0]


# ---- pipelines


def test_a_text_generation_pipeline() -> None:
    tokenizer, model = byte_level(), tiny_model("llama-gqa")
    tokenizer.padding_side = "left"
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    chat = [{"role": "user", "content": "The quick brown fox"}]
    texts = ["The quick brown fox jumps over the lazy dog", "The quick brown fox"]
    new = {"max_new_tokens": 8, "do_sample": False}

    def answers(of: Any) -> list[Any]:
        pipe = hf.pipeline("text-generation", model=of, tokenizer=tokenizer, device="cpu")
        assert "cpu" in repr(pipe)
        return [pipe(texts[0], **new), pipe(texts, batch_size=2, **new), pipe(chat, **new)]

    expected = answers(model)
    with wrapped(model) as cached:
        assert answers(cached) == expected
        computed = cached.stats()["cached_tokens"]
        assert answers(cached) == expected
        assert cached.stats()["cached_tokens"] > computed
        with pytest.raises(InputError, match="move the model first"):
            hf.pipeline("text-generation", model=cached, tokenizer=tokenizer, device="meta")


def test_a_model_whose_generate_was_replaced_by_the_wrapper_s() -> None:
    model = tiny_model("llama-gqa")
    expected = model.generate(torch.tensor([ROW]), max_new_tokens=4, do_sample=False)
    with wrapped(model) as cached:
        model.generate = cached.generate
        try:
            assert torch.equal(
                model.generate(torch.tensor([ROW]), max_new_tokens=4, do_sample=False), expected
            )
        finally:
            del model.generate


# ---- copies


def unpickle(content: bytes) -> None:
    pickle.loads(content)


@pytest.mark.parametrize(
    "way",
    [
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda cached: multiprocessing.get_context("spawn").Process(target=print, args=(cached,)).start(),
    ],
    ids=["copy", "deepcopy", "pickle", "spawn"],
)
def test_copies_are_refused(way: Callable[[Any], Any]) -> None:
    model = tiny_model("llama-gqa")
    with wrapped(model) as cached:
        with pytest.raises(InputError, match=r"cannot be copied, pickled or sent.*its \.model"):
            way(cached)
        assert_same(model, *complete(cached, ROW))


# ---- torch.compile


def compiled_whole(model: PreTrainedModel) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: PreTrainedModel) -> Any:
    model.compile(backend="eager")
    return model


def compiled_layer(model: PreTrainedModel) -> Any:
    model.model.layers[1].compile(backend="eager")
    return model


def compiled_part(model: PreTrainedModel) -> Any:
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    return model


def compiled_forward(model: PreTrainedModel) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.parametrize(
    "compiled", [compiled_whole, compiled_in_place, compiled_layer, compiled_part, compiled_forward]
)
def test_compiled_models_are_refused(compiled: Callable[[PreTrainedModel], Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"compiled by torch\.compile"):
        PrefixCachedModel(compiled(tiny_model("llama-gqa")), memory="1MiB")


def test_a_compiled_model_s_way_out() -> None:
    model = compiled_whole(tiny_model("llama-gqa"))
    with pytest.raises(UnsupportedModel, match=r"OptimizedModule's \._orig_mod"):
        PrefixCachedModel(model, memory="1MiB")
    with wrapped(model._orig_mod) as cached:
        assert_same(model._orig_mod, *complete(cached, ROW))


def test_a_model_compiled_after_it_was_wrapped() -> None:
    model = tiny_model("llama-gqa")
    with wrapped(model) as cached:
        assert_same(model, *complete(cached, ROW))
        model.compile(backend="eager")
        for call in (
            lambda: cached.generate(torch.tensor([ROW]), max_new_tokens=2),
            lambda: cached.submit(ROW),
            lambda: cached.warm(ROW),
        ):
            with pytest.raises(UnsupportedModel, match="_compiled_call_impl = None"):
                call()
        model._compiled_call_impl = None
        assert_same(model, *complete(cached, ROW))


# ---- another vocabulary


def test_token_embeddings_resized_after_wrapping() -> None:
    model = tiny_model("llama-gqa")
    new = [VOCABULARY + 5, *ROW]
    with wrapped(model, chunks=128) as cached:
        assert [complete(cached, ROW)[0].cached_tokens for _ in range(2)] == [0, 3 * CHUNK]
        with pytest.raises(InputError, match=f"vocabulary of {VOCABULARY}"):
            cached.submit(new)
        model.resize_token_embeddings(VOCABULARY + 9, mean_resizing=False)
        for row in (ROW, new):
            (completion,) = complete(cached, row)
            assert completion.cached_tokens == 0, "other weights, another namespace"
            assert_same(model, completion)
            batch = {**left_padded([row, row[:9]]), "max_new_tokens": 4, "do_sample": False}
            assert torch.equal(cached.generate(**batch), model.generate(**batch))
        model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        with pytest.raises(InputError, match=f"vocabulary of {VOCABULARY}"):
            cached.generate(torch.tensor([new]), max_new_tokens=2)
        assert_same(model, *complete(cached, ROW))


# ---- heads of their own


def head_without(*names: str) -> type[hf.LlamaForCausalLM]:
    """Llama's head, with a forward that does not take `names`, as remote code may have it."""

    class Head(hf.LlamaForCausalLM):  # type: ignore[misc]
        def forward(self, *args: Any, **others: Any) -> Any:
            unknown = others.keys() & set(names)
            if unknown:
                raise TypeError(f"forward() got an unexpected keyword argument {unknown}")
            return super().forward(*args, **others)

    signature = inspect.signature(hf.LlamaForCausalLM.forward)
    kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
    Head.forward.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return Head


def test_a_head_that_computes_all_logits() -> None:
    model = tiny_model("llama-gqa")
    model.__class__ = head_without("logits_to_keep")
    rows = prompts([26, 40, 33], shared=16)
    batch = {**left_padded(rows), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**batch)
    with wrapped(model) as cached:
        # Several rows a step, so that the last one's logits are not the others'.
        for completion in complete(cached, *rows, new=6):
            assert_same(model, completion)
        for _ in range(2):
            assert torch.equal(cached.generate(**batch), expected)
        assert list(cached.stream(ROW, max_new_tokens=4, eos=())) == greedy(model, ROW, 4)


def test_a_head_that_takes_no_cache() -> None:
    model = tiny_model("llama-gqa")
    model.__class__ = head_without(*CACHE_ARGUMENTS)
    with pytest.raises(UnsupportedModel, match=r"Head\.forward.*takes none of cache, past_key_values"):
        PrefixCachedModel(model, memory="1MiB")
