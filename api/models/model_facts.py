"""Facts about a Hugging Face model that are checked before it is served; models that fail are refused.

A family is served when its KV depends on nothing but tokens and absolute positions, and every layer's
attention is computed by the registered function. Families are a table, kept by hand and tested one by one; and each
model is tried with a few tokens, whose logits must be the model's own.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from kvtrie.api.models.adapters import refuse_unservable_adapters
from kvtrie.api.models.compiled_model import refuse_compiled
from kvtrie.api.models.families import FAMILIES, NOT_SERVED
from kvtrie.api.models.model_probe import check_logits, probe
from kvtrie.api.models.model_view import ModelView
from kvtrie.api.models.rope import max_positions, rope_parameters
from kvtrie.prefix_tree import ChunkShape
from kvtrie.prefix_tree.errors import InputError, UnsupportedModel


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
    """Dtype of keys and values, e.g. `float32`."""
    device: torch.device
    vocabulary: int
    """Tokens of the vocabulary at wrapping; `config.vocab_size` follows `resize_token_embeddings`."""
    max_positions: int
    """Most tokens of a sequence for which the model's attention is exactly reproduced."""
    limited_by: str
    """The config field that limits `max_positions`."""

    def chunk_shape(self, chunk_tokens: int) -> ChunkShape:
        """The shape of one chunk of this model's KV."""
        return ChunkShape(self.layers, self.kv_heads, chunk_tokens, self.key_dim, self.value_dim, self.dtype)

    def layout(self) -> str:
        """Canonical JSON of layers, heads, dims, RoPE parameters and windows, for the namespace."""
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
    """Checks that a model can be served exactly, and learns its shapes by forwarding a few tokens.

    Raises:
        UnsupportedModel: names what kvtrie cannot serve.
        InputError: the model is in training mode, or its KV dtype is not stored.
    """
    # 1. A model of a served family, by its class and config.
    refuse_compiled(model)
    base = _base_model(model)
    kind = type(base).__name__
    if not hasattr(base, "config") or not hasattr(base, "generate"):
        raise UnsupportedModel(f"{kind} is not a Hugging Face model with generate()")
    config: Any = base.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder-decoder; kvtrie serves decoder-only models")
    text = config.get_text_config(decoder=True)
    if text.model_type not in FAMILIES:
        why = NOT_SERVED.get(text.model_type, f"served are {', '.join(sorted(FAMILIES))}")
        raise UnsupportedModel(f"{kind} (model type {text.model_type!r}) is not served: {why}")
    for layer, layer_kind in enumerate(getattr(text, "layer_types", None) or ()):
        if layer_kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(f"{kind}: layer {layer} is {layer_kind!r}, which kvtrie does not compute")
    # 2. Ready to run.
    if model.training:
        raise InputError(f"{kind} is in training mode; call model.eval() first")
    device = next(base.parameters()).device
    if device.type == "meta":
        raise InputError(f"{kind} has no weights: its parameters are on the meta device")
    # 3. Layers and shapes, from passes of a few tokens.
    view = ModelView(base)
    probed = probe(kind, view.root, text, device)
    shapes = sorted({astuple(shape) for shape in probed.shapes.values()})
    if sorted(probed.shapes) != list(range(text.num_hidden_layers)) or len(shapes) != 1:
        raise UnsupportedModel(
            f"{kind}: {len(probed.shapes)} of {text.num_hidden_layers} layers reach the attention function, with "
            f"KV shapes {shapes}; kvtrie needs all, of one shape"
        )
    # 4. Limits: positions, windows, softcap; then the logits are the model's own.
    positions, limited_by = max_positions(text)
    windows = {layer: variant.window for layer, variant in probed.variants.items()}
    _check_windows(kind, text, windows, positions)
    has_softcap = any(variant.softcap is not None for variant in probed.variants.values())
    if has_softcap and text._attn_implementation == "sdpa":
        # Transformers before 5.23 drops the softcap there without a word: cached and uncached would differ.
        raise UnsupportedModel(
            f"{kind} runs on sdpa, which leaves out the softcap its config asks for; load it with "
            'attn_implementation="eager"'
        )
    check_logits(base, view.root, text, probed)
    shape = probed.shapes[0]
    return ModelFacts(
        model=base,
        view=view,
        config=text,
        layers=text.num_hidden_layers,
        kv_heads=shape.kv_heads,
        key_dim=shape.key_dim,
        value_dim=shape.value_dim,
        dtype=shape.dtype,
        device=device,
        vocabulary=text.vocab_size,
        max_positions=positions,
        limited_by=limited_by,
    )


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


def _check_windows(kind: str, config: Any, told: dict[int, int | None], positions: int) -> None:
    """Checks that each layer passes to its attention the window that the model's own masks would give it.

    `positions` is the length of the longest sequence.

    Raises:
        UnsupportedModel: names the first layer whose mask differs.
    """
    window, kinds = _window(config), getattr(config, "layer_types", None)
    # A window of all positions hides nothing.
    hides_nothing = {
        None,
        *(seen for seen in (window, *told.values()) if seen is not None and seen >= positions),
    }
    for layer, found in sorted(told.items()):
        masked = None if kinds is not None and kinds[layer] == "full_attention" else window
        if found != masked and not {found, masked} <= hides_nothing:
            raise UnsupportedModel(
                f"{kind}: layer {layer} is masked to a window of {masked} by its config, and tells its attention "
                f"function {found}; kvtrie cannot know which holds"
            )
