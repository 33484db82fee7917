"""Which calls of `generate` can be served exactly, and what their prompts are."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor

from kvtrie.prefix_tree.errors import InputError, UnsupportedModel

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the cache, from 5.24 on and before."""

_REFUSED_ALWAYS = {
    "inputs_embeds": "pass input_ids: the cache is keyed on tokens",
    **dict.fromkeys(CACHE_ARGUMENTS, "the cache is kvtrie's own; drop the argument"),
    "position_ids": "positions follow from the attention mask; drop the argument",
    "custom_generate": "kvtrie serves transformers' own decoding loops",
    "encoder_outputs": "kvtrie serves decoder-only models",
    "adapter_names": "mixed adapters in one batch are not served; call set_adapter() and generate once each",
    "pixel_values": "the cache is keyed on tokens, and images are none; text of the same model is served",
    "token_type_ids": "they mark images, which are not served; drop the argument",
}

_UNSET_BY_TRANSFORMERS = {"cache_implementation": "hybrid"}
"""What Gemma 2 and 3 checkpoints still ask for by default; transformers drops it in favour of its dynamic cache."""

_REFUSED_WHEN_TRUE = {
    "output_attentions": "attention weights are never formed",
    "output_hidden_states": "cached tokens have no hidden states to return",
    "low_memory": "it splits the cache",
    "token_healing": "it rewrites the prompt after it was matched",
    "use_mtp": "it needs a cache of its own",
}

_REFUSED_WHEN_SET = {
    "cache_implementation": "the cache is kvtrie's own; drop the argument",
    "penalty_alpha": "contrastive search is not served",
    "dola_layers": "DoLa decoding needs hidden states of cached tokens",
    "constraints": "constrained beam search is not served",
    "force_words_ids": "constrained beam search is not served",
    "speculation_type": "it needs a cache of its own",
}


def refuse_unservable(arguments: dict[str, Any], generation_config: Any) -> None:
    """Names the first argument of `generate` that kvtrie cannot serve.

    Raises:
        UnsupportedModel: says which, and what to do instead.
    """
    for name, why in _REFUSED_ALWAYS.items():
        if arguments.get(name) is not None:
            raise UnsupportedModel(f"generate({name}=...) is not served: {why}")
    for refused in (_REFUSED_WHEN_TRUE, _REFUSED_WHEN_SET):
        for name, why in refused.items():
            value = arguments.get(name, getattr(generation_config, name, None))
            if value is not None and value == _UNSET_BY_TRANSFORMERS.get(name):
                continue
            if value if refused is _REFUSED_WHEN_TRUE else value is not None:
                raise UnsupportedModel(f"generate({name}={value!r}) is not served: {why}")
    if arguments.get("use_cache", getattr(generation_config, "use_cache", None)) is False:
        raise UnsupportedModel("generate(use_cache=False) is not served: call the model itself for that")
    if (arguments.get("num_beam_groups", getattr(generation_config, "num_beam_groups", None)) or 1) > 1:
        raise UnsupportedModel("generate(num_beam_groups=...) is not served: use plain beams")


def prompts_of(input_ids: Any, attention_mask: Any, generation_config: Any) -> list[list[int]]:
    """The tokens of each row, padding left out.

    Args:
        input_ids: int `[batch, columns]`, padded on the left.
        attention_mask: 0/1 `[batch, columns]`; where None it is inferred as transformers does, from the pad
            token.
        generation_config: the effective one, for pad and EOS tokens.

    Raises:
        InputError: not a 2-D integer tensor, an empty row, or padding anywhere but on the left.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        what = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise InputError(f"generate() takes input_ids as an integer tensor [batch, tokens], got {what}")
    if input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise InputError("the prompt is empty; a model needs at least one token")
    mask = _inferred_mask(input_ids, generation_config) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask {tuple(mask.shape)} does not have the shape of input_ids {tuple(input_ids.shape)}"
        )
    kept = mask.bool()
    if not kept.any(-1).all():
        row = int((~kept.any(-1)).nonzero()[0])
        raise InputError(f"the prompt in row {row} is empty: its attention mask is all zeros")
    if not kept[:, -1].all() or (kept[:, :-1] & ~kept[:, 1:]).any():
        raise InputError('prompts must be padded on the left only: use tokenizer.padding_side = "left"')
    return [row[keep].tolist() for row, keep in zip(input_ids, kept)]


def cache_argument(model: Any) -> str:
    """Under which name the model's forward, and so `generate`, takes a cache.

    Raises:
        UnsupportedModel: under none that kvtrie knows.
    """
    for kind in type(model).__mro__:
        parameters = inspect.signature(vars(kind)["forward"]).parameters if "forward" in vars(kind) else {}
        for name in CACHE_ARGUMENTS:
            if name in parameters:
                return name
    raise UnsupportedModel(
        f"{type(model).__name__}.forward of transformers {transformers.__version__} takes none of "
        f"{', '.join(CACHE_ARGUMENTS)}: its generate() cannot run on kvtrie's cache"
    )


def eos_tokens(generation_config: Any) -> frozenset[int]:
    """The tokens that end a row."""
    eos = generation_config.eos_token_id
    if eos is None:
        return frozenset()
    if isinstance(eos, Tensor):
        eos = eos.tolist()
    return frozenset(eos if isinstance(eos, list) else [eos])


def _inferred_mask(input_ids: Tensor, generation_config: Any) -> Tensor:
    pad, eos = generation_config.pad_token_id, eos_tokens(generation_config)
    if isinstance(pad, Tensor):
        pad = int(pad)
    if pad is None or pad in eos:
        return torch.ones_like(input_ids)
    mask: Tensor = (input_ids != pad).long()
    return mask
