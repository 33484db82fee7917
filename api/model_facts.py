"""What kvtrie must know of a Hugging Face model before it may serve it, and whom it refuses.

A family is served when its KV depends on nothing but tokens and absolute positions, and every layer's
attention goes through the registered function. The first is a table, kept by hand and tested family by
family; the second is tried out, with one token, on the model itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvtrie.api.adapters import refuse_unservable_adapters
from kvtrie.api.layer_attention import KEYWORD
from kvtrie.api.model_view import ModelView
from kvtrie.api.rope import max_positions, rope_parameters
from kvtrie.chunk_kernels import Variant
from kvtrie.prefix_tree import ChunkShape
from kvtrie.prefix_tree.errors import InputError, UnsupportedModel

FAMILIES = frozenset(
    {
        "arcee",
        "cohere",
        "cohere2",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "starcoder2",
    }
)
"""Model types served; each one passes the same exactness tests."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A supported model, as the rest of kvtrie sees it."""

    model: nn.Module
    """The model whose forward computes logits; below a PEFT wrapper, its base."""
    view: ModelView
    """The model with kvtrie's attention."""
    config: Any
    """The text config that every attention layer reads."""
    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str
    """Of keys and values, e.g. `float32`."""
    device: torch.device
    vocabulary: int
    max_positions: int
    """Most tokens of a sequence for which the model's attention is exactly reproduced."""
    limited_by: str
    """Which config field `max_positions` comes from."""

    def chunk_shape(self, chunk_tokens: int) -> ChunkShape:
        """The shape of one chunk of this model's KV."""
        return ChunkShape(self.layers, self.kv_heads, chunk_tokens, self.key_dim, self.value_dim, self.dtype)

    def layout(self) -> str:
        """Canonical JSON of all that lays out a layer's KV, for the namespace."""
        return json.dumps(
            {
                "layers": self.layers,
                "kv_heads": self.kv_heads,
                "key_dim": self.key_dim,
                "value_dim": self.value_dim,
                "rope": rope_parameters(self.config),
                "layer_types": getattr(self.config, "layer_types", None),
                "sliding_window": _window(self.config),
            },
            sort_keys=True,
            separators=(",", ":"),
            default=str,
        )


def model_facts(model: nn.Module) -> ModelFacts:
    """Checks that a model can be served exactly, and learns its shapes by forwarding one token.

    Raises:
        UnsupportedModel: names what kvtrie cannot serve.
        InputError: the model is in training mode, or its KV dtype is not stored.
    """
    base = _base_model(model)
    kind = type(base).__name__
    if not hasattr(base, "config") or not hasattr(base, "generate"):
        raise UnsupportedModel(f"{kind} is not a Hugging Face model with generate()")
    config: Any = base.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder-decoder; kvtrie serves decoder-only models")
    text = config.get_text_config(decoder=True)
    if text.model_type not in FAMILIES:
        raise UnsupportedModel(
            f"{kind} (model type {text.model_type!r}) is not served; served are {', '.join(sorted(FAMILIES))}"
        )
    for layer, layer_kind in enumerate(getattr(text, "layer_types", None) or ()):
        if layer_kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(f"{kind}: layer {layer} is {layer_kind!r}, which kvtrie does not compute")
    if model.training:
        raise InputError(f"{kind} is in training mode; call model.eval() first")
    probe = _ShapeProbe()
    parameter = next(base.parameters())
    if parameter.device.type == "meta":
        raise InputError(f"{kind} has no weights: its parameters are on the meta device")
    view = ModelView(base)
    with torch.no_grad():
        view.root(
            input_ids=torch.zeros(1, 1, dtype=torch.long, device=parameter.device),
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=parameter.device),
            use_cache=False,
            **{KEYWORD: probe},
        )
    if sorted(probe.layers) != list(range(text.num_hidden_layers)) or len(set(probe.layers.values())) != 1:
        raise UnsupportedModel(
            f"{kind}: {len(probe.layers)} of {text.num_hidden_layers} layers reach the attention function, with "
            f"KV shapes {sorted(set(probe.layers.values()))}; kvtrie needs all, of one shape"
        )
    _check_windows(kind, text, probe.windows)
    if probe.has_softcap and text._attn_implementation == "sdpa":
        # Transformers before 5.23 drops the softcap there without a word: cached and uncached would differ.
        raise UnsupportedModel(
            f"{kind} runs on sdpa, which leaves out the softcap its config asks for; load it with "
            'attn_implementation="eager"'
        )
    kv_heads, key_dim, value_dim, dtype = probe.layers[0]
    positions, limited_by = max_positions(text)
    return ModelFacts(
        model=base,
        view=view,
        config=text,
        layers=text.num_hidden_layers,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        dtype=dtype,
        device=parameter.device,
        vocabulary=text.vocab_size,
        max_positions=positions,
        limited_by=limited_by,
    )


class _ShapeProbe:
    """Notes every layer's KV shape and variant; attends to the one token's own value."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[int, int, int, str]] = {}
        self.windows: dict[int, int | None] = {}
        self.has_softcap = False

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, variant: Variant
    ) -> Tensor:
        dtype = str(key.dtype).removeprefix("torch.")
        self.windows[layer] = variant.window
        self.has_softcap |= variant.softcap is not None
        self.layers[layer] = (key.shape[1], key.shape[2], value.shape[2], dtype)
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1)


def _base_model(model: nn.Module) -> nn.Module:
    """The transformers model below a PEFT wrapper, or `model` itself."""
    refuse_unservable_adapters(model)
    # Only PeftModel has get_base_model(); a model with adapters added by transformers is its own base.
    unwrap = getattr(model, "get_base_model", None)
    found: nn.Module = model if unwrap is None else unwrap()
    return found


def _window(config: Any) -> int | None:
    """The sliding window of any layer that has one."""
    window: int | None = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or "sliding_attention" in kinds else None


def _check_windows(kind: str, config: Any, told: dict[int, int | None]) -> None:
    """Whether each layer tells its attention the window that the model's own masks would give it.

    Raises:
        UnsupportedModel: names the first layer whose mask says something else.
    """
    window, kinds = _window(config), getattr(config, "layer_types", None)
    for layer, found in sorted(told.items()):
        masked = None if kinds is not None and kinds[layer] == "full_attention" else window
        if found != masked:
            raise UnsupportedModel(
                f"{kind}: layer {layer} is masked to a window of {masked} by its config, and tells its attention "
                f"function {found}; kvtrie cannot know which holds"
            )
