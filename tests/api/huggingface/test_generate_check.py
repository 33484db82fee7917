"""A library that changed is noticed: at wrapping, and by the cache itself."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.api.huggingface.generate_arguments import cache_argument
from kvtrie.api.huggingface.pool_cache import PoolCache
from kvtrie.prefix_tree.errors import LibraryChanged, UnsupportedModel
from tests.api.balance import CHUNK, wrapped
from tests.api.tiny_models import CONFIGS, prompts, tiny_model

CACHE = cache_argument(tiny_model("llama-gqa"))
VERSION = hf.__version__.replace(".", r"\.")


def model_of(kind: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(CONFIGS["llama-gqa"]()).eval()


class WithoutTheCache(hf.LlamaForCausalLM):
    """Its loop drops the cache it is given, as if it were called something else by now."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs.pop(CACHE, None)
        inputs["use_cache"] = False
        return inputs


class WholePromptWithoutPositions(hf.LlamaForCausalLM):
    """Its loop hands on the whole prompt, and nothing that tells where it begins."""

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["next_sequence_length"] = None
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        inputs.pop("position_ids", None)
        return inputs


class LayersOutsideOurPasses(hf.LlamaForCausalLM):
    """Its loop calls the decoder below, where kvtrie prepares nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(kwargs.get(CACHE), PoolCache):
            hidden = self.model(
                **{k: v for k, v in kwargs.items() if k not in ("return_dict", "logits_to_keep")}
            )
            raise AssertionError(hidden)
        return super().__call__(*args, **kwargs)


class AnotherAttention(hf.LlamaForCausalLM):
    """Its own attention is sharper than what it tells the registered function."""

    @wraps(hf.LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for layer in self.model.layers:
            layer.self_attn.scaling = 0.25 if "kvtrie_step" in kwargs else 1.0
        return super().forward(*args, **kwargs)


class OtherTokens(hf.LlamaForCausalLM):
    """Its loop hands on other tokens than the prompt's."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {**inputs, "input_ids": (inputs["input_ids"] + 1) % 200}


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        (
            WithoutTheCache,
            LibraryChanged,
            rf"transformers {VERSION} did not use the cache .* as {CACHE}=",
        ),
        (
            WholePromptWithoutPositions,
            LibraryChanged,
            rf"generate\(\) of transformers {VERSION} forwards 1 columns at positions None",
        ),
        (LayersOutsideOurPasses, Exception, "kvtrie"),
        (AnotherAttention, UnsupportedModel, "AnotherAttention does not compute its own logits"),
        (
            OtherTokens,
            UnsupportedModel,
            r"prompt of 1 tokens, logits .* off those of the model's own forward",
        ),
    ],
)
def test_refused_at_wrapping(kind: type[PreTrainedModel], error: type[Exception], says: str) -> None:
    model = model_of(kind)
    with pytest.raises(error, match=says):
        PrefixCachedModel(model, memory="1MiB", chunk_tokens=CHUNK)


def test_a_cache_under_a_name_we_do_not_know() -> None:
    class Renamed(torch.nn.Module):
        def forward(self, input_ids: Any, memory: Any = None) -> Any:
            return input_ids, memory

    with pytest.raises(
        UnsupportedModel, match=rf"Renamed\.forward of transformers {VERSION} takes none of cache, past"
    ):
        cache_argument(Renamed())


def test_the_check_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    log = tmp_path / "traffic.jsonl"
    monkeypatch.setenv("KVTRIE_TRACE", str(log))
    with wrapped(tiny_model("llama-gqa")) as cached:
        stats = cached.stats()
        assert not stats.get("requests")
        assert stats["device"]["chunks"] == 0
        assert not cached.engine.memory.tree.roots()
    assert len([line for line in log.read_text().splitlines() if "prompt_tokens" in line]) == 0


def test_defaults_that_generate_refuses_do_not_keep_a_model_from_being_wrapped() -> None:
    model = tiny_model("llama-gqa")
    model.generation_config.use_cache = False
    row = prompts([20])[0]
    with wrapped(model) as cached:
        completion = cached.submit(row, max_new_tokens=2, eos=())
        cached.engine.run()
        assert completion.error is None
        with pytest.raises(UnsupportedModel, match="use_cache"):
            cached.generate(torch.tensor([row]), max_new_tokens=2)


def test_keys_and_values_outside_a_pass_are_an_error() -> None:
    with wrapped(tiny_model("llama-gqa")) as cached:
        memory = cached.engine.memory
        cache = PoolCache(memory, cached._identity, 0, frozenset(), cached.engine.lock)
        states = torch.zeros(1, 2, 1, 16)
        with pytest.raises(LibraryChanged, match=f"outside a pass .* transformers {VERSION}"):
            cache.update(states, states, 0)


def test_every_question_that_transformers_may_ask_of_a_cache_has_our_answer() -> None:
    """A method that a newer transformers adds is looked at here before it is relied on."""
    static = {"get_max_cache_shape", "max_batch_size", "max_cache_len"}
    moved = {
        "offload",
        "prefetch",
        "reset",
        "batch_repeat_interleave",
        "batch_select_indices",
        "early_initialization",
    }
    states = {name for name in dir(hf.Cache) if "state" in name or "indexer" in name or "recording" in name}
    asked = {name for name in vars(hf.Cache) if not name.startswith("_")} - static - moved - states
    assert asked <= set(vars(PoolCache)), asked - set(vars(PoolCache))
