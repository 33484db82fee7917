"""What kvtrie cannot serve exactly is refused by name, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvtrie.api import PrefixCachedModel
from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.errors import AccessDenied, UnsupportedModel
from tests.api.balance import assert_balanced, assert_same, complete, wrapped
from tests.api.tiny_models import prompts, tiny_model

IDS = torch.tensor(prompts([20]))
_LLAMA_LIKE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def test_encoder_decoders() -> None:
    config = hf.T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2)
    with pytest.raises(UnsupportedModel, match="T5ForConditionalGeneration is an encoder-decoder"):
        PrefixCachedModel(hf.T5ForConditionalGeneration(config).eval())


def test_what_is_no_hugging_face_model() -> None:
    with pytest.raises(UnsupportedModel, match="Linear is not a Hugging Face model"):
        PrefixCachedModel(torch.nn.Linear(2, 2))


def test_a_layer_that_does_not_reach_the_attention_function(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama-gqa")
    layer = model.model.layers[1]
    monkeypatch.setattr(layer, "forward", lambda hidden_states, *_, **__: hidden_states)
    with pytest.raises(UnsupportedModel, match="2 of 3 layers reach"):
        PrefixCachedModel(model, memory="1MiB")
    assert model.config._attn_implementation != "kvtrie"


INCONSISTENT: dict[str, tuple[Callable[[], Any], str]] = {
    "a window in the mask only": (
        lambda: hf.Qwen2MoeConfig(
            **_LLAMA_LIKE,
            num_experts=2,
            num_experts_per_tok=1,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=2,
        ),
        "Qwen2MoeForCausalLM: layer 0 is masked to a window of 8 by its config, and tells .* None",
    ),
    "layers of two kinds, told the same": (
        lambda: hf.MistralConfig(
            **_LLAMA_LIKE, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "MistralForCausalLM: layer 1 is masked to a window of None by its config, and tells .* 8",
    ),
    "another kind of layer": (
        lambda: hf.Qwen3Config(**_LLAMA_LIKE, layer_types=["full_attention", "chunked_attention"]),
        "Qwen3ForCausalLM: layer 1 is 'chunked_attention'",
    ),
    "both directions": (
        lambda: hf.Gemma3TextConfig(**_LLAMA_LIKE, head_dim=16, use_bidirectional_attention=True),
        "Gemma3Attention attends in both directions",
    ),
    "a layer that passes something new": (
        lambda: hf.LlamaConfig(**_LLAMA_LIKE),
        "LlamaAttention asks attention for novelty=3, which kvtrie does not compute",
    ),
}


@pytest.mark.parametrize("case", INCONSISTENT)
def test_layers_of_a_served_family(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, says = INCONSISTENT[case]
    model = hf.AutoModelForCausalLM.from_config(config()).eval()
    if "something new" in case:
        attention = model.model.layers[0].self_attn
        plain = type(attention).forward
        monkeypatch.setattr(
            attention,
            "forward",
            MethodType(lambda *args, **words: plain(*args, **words, novelty=3), attention),
        )
    with pytest.raises(UnsupportedModel, match=says):
        PrefixCachedModel(model, memory="1MiB")
    assert model.config._attn_implementation != "kvtrie"


def test_an_attention_of_its_own_that_leaves_the_softcap_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2-window")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
    with pytest.raises(UnsupportedModel, match=r'leaves out the softcap .*attn_implementation="eager"'):
        PrefixCachedModel(model, memory="1MiB")
    assert model.config._attn_implementation == "sdpa"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model) as wrapper:
        yield wrapper


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs_embeds", torch.zeros(1, 20, 64)),
        ("past_key_values", hf.DynamicCache()),
        ("position_ids", torch.arange(20)[None]),
        ("custom_generate", "somebody/code"),
        ("encoder_outputs", (torch.zeros(1, 1, 1),)),
        ("adapter_names", ["one"]),
        ("pixel_values", torch.zeros(1, 3, 8, 8)),
        ("token_type_ids", torch.zeros(1, 20, dtype=torch.long)),
        ("output_attentions", True),
        ("output_hidden_states", True),
        ("low_memory", True),
        ("token_healing", True),
        ("use_cache", False),
        ("cache_implementation", "static"),
        ("cache_implementation", "offloaded"),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("force_words_ids", [[5]]),
        ("num_beam_groups", 2),
    ],
)
def test_generation_modes(cached: PrefixCachedModel, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        cached.generate(IDS, max_new_tokens=2, **{name: value})
    assert_balanced(cached)
    assert cached.stats()["device"]["used_bytes"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_cache", False), ("cache_implementation", "static"), ("output_attentions", True)],
)
def test_generation_modes_in_a_config(cached: PrefixCachedModel, name: str, value: Any) -> None:
    config = hf.GenerationConfig(max_new_tokens=2, **{name: value})
    with pytest.raises(UnsupportedModel, match=name):
        cached.generate(IDS, config)
    assert_balanced(cached)


def test_the_cache_that_gemma_checkpoints_ask_for_is_no_reason() -> None:
    """Transformers unsets `hybrid`, too."""
    model = tiny_model("gemma2-window")
    model.generation_config.cache_implementation = "hybrid"
    with wrapped(model) as cached:
        expected = model.generate(IDS, max_new_tokens=6, do_sample=False)
        assert torch.equal(cached.generate(IDS, max_new_tokens=6, do_sample=False), expected)


def test_settings_that_ask_for_nothing_are_fine(cached: PrefixCachedModel) -> None:
    quiet = {"output_attentions": False, "use_cache": True, "num_beam_groups": 1, "past_key_values": None}
    expected = cached.model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(cached.generate(IDS, max_new_tokens=3, do_sample=False, **quiet), expected)


def test_prompt_learning_adapters() -> None:
    peft = pytest.importorskip("peft")
    for config in (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ):
        model = peft.get_peft_model(tiny_model("llama-mha"), config).eval()
        with pytest.raises(UnsupportedModel, match=r"'default'.*prepends learned tokens or keys"):
            PrefixCachedModel(model, memory="1MiB")


def test_shared_scopes_that_are_not_configured(cached: PrefixCachedModel) -> None:
    with pytest.raises(AccessDenied, match="no shared scope 'tools'"):
        cached.warm(IDS[0], scope="tools")
    with pytest.raises(InputError, match="pass one"):
        cached.warm(IDS[0], scope="tools", tenant="acme")
    assert_balanced(cached)


def test_refusals_leave_the_wrapper_working(cached: PrefixCachedModel, model: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModel):
        cached.generate(IDS, use_cache=False)
    assert_same(model, *complete(cached, IDS[0].tolist()))
