"""Families are served by their tests, refused by name, and refused by the probe where a table is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from kvtrie.api import PrefixCachedModel
from kvtrie.api.models import model_facts
from kvtrie.api.models.families import FAMILIES, NOT_SERVED, Family
from kvtrie.api.models.layer_attention import SINKS, SOFTCAP, WINDOW
from kvtrie.prefix_tree.errors import UnsupportedModel
from tests.api.huggingface.test_exactness import WITH_IMAGES
from tests.api.tiny_models import CONFIGS, tiny_model

_TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA_LIKE = {**_TINY, "intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}

REFUSED: dict[str, Callable[[], Any]] = {
    "bloom": lambda: hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=2),
    "diffllama": lambda: hf.DiffLlamaConfig(**_LLAMA_LIKE),
    "falcon": lambda: hf.FalconConfig(**_TINY),
    "gemma4_text": lambda: hf.Gemma4TextConfig(
        **_LLAMA_LIKE,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=97,
        hidden_size_per_layer_input=16,
    ),
    "gptj": lambda: hf.GPTJConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
    "llama4_text": lambda: hf.Llama4TextConfig(
        **_LLAMA_LIKE, head_dim=16, num_local_experts=2, intermediate_size_mlp=32
    ),
    "mamba": lambda: hf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2),
    "mpt": lambda: hf.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=2),
    "nemotron": lambda: hf.NemotronConfig(**_LLAMA_LIKE, head_dim=16),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_LLAMA_LIKE,
        **_EXPERTS,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        shared_expert_intermediate_size=32,
    ),
    "stablelm": lambda: hf.StableLmConfig(**_LLAMA_LIKE),
}


def built(config: Callable[[], Any]) -> Any:
    """A model whose attention matters to its logits; skips the test where transformers does not have it."""
    torch.manual_seed(0)
    try:
        made = config()
    except AttributeError as missing:
        pytest.skip(f"transformers {hf.__version__} does not have it: {missing}")
    model = hf.AutoModelForCausalLM.from_config(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return model


def test_every_family_served_has_exactness_tests() -> None:
    tested = set()
    for config in CONFIGS.values():
        try:
            tested.add(config().model_type)
        except AttributeError:
            pytest.skip(f"transformers {hf.__version__} does not have all of them")
    assert tested == FAMILIES.keys()


def test_every_model_that_adds_images_is_tried() -> None:
    said = {wrapper for family in FAMILIES.values() for wrapper in family.wrappers}
    assert {name.split()[0] for name in WITH_IMAGES} == said


def test_every_family_refused_by_name_is_tried() -> None:
    assert REFUSED.keys() == NOT_SERVED.keys()
    assert not NOT_SERVED.keys() & FAMILIES.keys()


@pytest.mark.parametrize("family", REFUSED)
def test_refused_by_name_and_reason(family: str) -> None:
    model = built(REFUSED[family])
    with pytest.raises(UnsupportedModel) as refused:
        PrefixCachedModel(model, memory="1MiB")
    assert str(refused.value) == (
        f"{type(model).__name__} (model type {family!r}) is not served: {NOT_SERVED[family]}"
    )
    assert not model._forward_pre_hooks


def test_a_family_in_no_table_is_told_what_is_served() -> None:
    model = built(lambda: hf.BioGptConfig(**_TINY, intermediate_size=32))
    with pytest.raises(
        UnsupportedModel, match=r"BioGptForCausalLM \(model type 'biogpt'\) is not served.*, llama, "
    ):
        PrefixCachedModel(model, memory="1MiB")


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("bloom", "0 of 2 layers reach the attention function"),
        ("diffllama", "DiffLlamaForCausalLM: layer 0 attends more than once in a pass"),
        ("falcon", "FalconForCausalLM cannot run on kvtrie's attention, which 0 of 2 layers reached before"),
        ("gemma4_text", r"2 of 2 layers reach .* with KV shapes \[\(2, 16, .* \(2, 512, "),
        ("llama4_text", "layer 0 is 'chunked_attention'"),
        ("mamba", "layer 0 is 'linear_attention'"),
        ("mpt", "MptForCausalLM cannot run on kvtrie's attention, which 0 of 2 layers reached before"),
        ("nemotron", "NemotronAttention does not hand keywords on"),
        ("qwen3_next", "layer 0 is 'linear_attention'"),
        ("stablelm", "StableLmAttention does not hand keywords on"),
    ],
)
def test_refused_by_the_probe_where_the_table_is_wrong(
    family: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-J is left out: newer versions of transformers compute it through the attention function."""
    monkeypatch.setattr(model_facts, "FAMILIES", {**FAMILIES, family: Family(family)})
    model = built(REFUSED[family])
    with pytest.raises(UnsupportedModel, match=says) as refused:
        PrefixCachedModel(model, memory="1MiB")
    assert "\n" not in str(refused.value)


def _every_mlp(model: Any, mixed: Callable[[Tensor], Tensor]) -> None:
    """Each layer's MLP gets its inputs, `[1, tokens, hidden]`, through `mixed`."""
    for layer in model.model.layers:
        plain = layer.mlp.forward
        layer.mlp.forward = lambda hidden, plain=plain: plain(mixed(hidden))


def _sum_so_far(model: Any) -> None:
    _every_mlp(model, lambda hidden: hidden.cumsum(1))


def _the_token_before(model: Any) -> None:
    _every_mlp(model, lambda hidden: hidden + torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1])


def _later_tokens(model: Any) -> None:
    _every_mlp(model, lambda hidden: hidden + hidden.mean(1, keepdim=True))


def _positions_of_its_own(model: Any) -> None:
    rotary = model.model.rotary_emb
    plain = rotary.forward

    def counted(hidden: Tensor, position_ids: Tensor) -> Any:
        return plain(hidden, torch.arange(hidden.shape[1])[None])

    rotary.forward = counted


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (_sum_so_far, torch.float32),
        (_sum_so_far, torch.bfloat16),
        (_the_token_before, torch.float32),
        (_the_token_before, torch.bfloat16),
        (_later_tokens, torch.float32),
        (_later_tokens, torch.bfloat16),
        # Below what rounding to 16 bits explains, in so small a model.
        (_positions_of_its_own, torch.float32),
    ],
)
def test_refused_by_its_logits(change: Callable[[Any], None], dtype: torch.dtype) -> None:
    """Each reaches the attention function once a layer, with the right shapes."""
    model = tiny_model("llama-gqa", dtype)
    change(model)
    with pytest.raises(
        UnsupportedModel, match="LlamaForCausalLM does not compute its own logits from the keys"
    ):
        model_facts.model_facts(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_rounding_is_no_reason(family: str, dtype: torch.dtype) -> None:
    """Rounding to 16 bits sends a token to another expert now and then."""
    for seed in range(3):
        facts = model_facts.model_facts(tiny_model(family, dtype, seed))
        assert facts.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_the_table_says_of_a_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the layers of its tiny models tell their attention function, and by the modules they have."""
    from transformers import AttentionInterface

    model = tiny_model(family)
    told: set[str] = set()
    plain = AttentionInterface()["sdpa"]

    def note(*args: Any, **keywords: Any) -> Any:
        told.update(name for name, setting in keywords.items() if setting is not None)
        return plain(*args, **{name: s for name, s in keywords.items() if name not in (SINKS, SOFTCAP)})

    AttentionInterface.register("told", note)
    model.config._attn_implementation_internal = "told"
    model(torch.tensor([[5, 6, 7]]))
    said = FAMILIES[model.config.model_type]
    has_experts = any("experts" in name for name, _ in model.named_modules())
    assert (said.has_softcap, said.has_sinks, said.has_experts) == (
        SOFTCAP in told,
        SINKS in told,
        has_experts,
    )
    # A family with windows may have models without.
    assert said.has_window or WINDOW not in told or min(model.config.sliding_window, 512) == 512
    assert said.has_window == any(
        name.endswith("-window") and config().model_type == model.config.model_type
        for name, config in CONFIGS.items()
    )
