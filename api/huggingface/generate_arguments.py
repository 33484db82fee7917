"""Arguments of `generate`: which calls are served exactly, and their prompts."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor

from kvtrie.api.engine.padding_mask import check_mask
from kvtrie.prefix_tree.errors import InputError, UnsupportedModel

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the cache argument in transformers, from 5.24 on and before."""

TOKENIZERS = ("tokenizer", "assistant_tokenizer")
"""Arguments for `generate`'s own loop, neither settings nor inputs; it passes them to each forward, too."""

_REFUSED_ALWAYS = {
    "inputs_embeds": "pass input_ids: the cache is keyed on tokens",
    **dict.fromkeys(CACHE_ARGUMENTS, "the cache is kvtrie's own; drop the argument"),
    "position_ids": "positions follow from the attention mask; drop the argument",
    "custom_generate": "kvtrie serves transformers' own decoding loops",
    "encoder_outputs": "kvtrie serves decoder-only models",
    "adapter_names": "mixed adapters in one batch are not served; call set_adapter() and generate once each",
    "pixel_values": "the cache is keyed on tokens, and images are none; text of the same model is served",
    "token_type_ids": "they change what tokens mean, and the cache is keyed on tokens alone; drop the argument",
}

_ID_DTYPES = (torch.int64, torch.int32)
"""Dtypes of ids that an embedding takes."""

_UNSET_BY_TRANSFORMERS = {"cache_implementation": "hybrid"}
"""Defaults of Gemma 2 and 3 checkpoints that transformers itself replaces by its dynamic cache."""

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
    "assistant_early_exit": "its drafts are made by the first layers alone, which have no cache of their own",
}


def refuse_unservable(arguments: dict[str, Any], generation_config: Any) -> None:
    """Names the first argument of `generate` that kvtrie cannot serve.

    Raises:
        UnsupportedModel: says which, and what to do instead.
    """
    # 1. Arguments that are refused by a table.
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
    # 2. Arguments of which some values are served.
    assistant = arguments.get("assistant_model")
    if assistant is not None and not isinstance(assistant, torch.nn.Module):
        raise UnsupportedModel(
            f"generate(assistant_model=...) takes a transformers model, got {type(assistant).__name__}; of a "
            "PrefixCachedModel, pass its .model"
        )
    if arguments.get("use_cache", getattr(generation_config, "use_cache", None)) is False:
        raise UnsupportedModel("generate(use_cache=False) is not served: call the model itself for that")
    if (arguments.get("num_beam_groups", getattr(generation_config, "num_beam_groups", None)) or 1) > 1:
        raise UnsupportedModel("generate(num_beam_groups=...) is not served: use plain beams")


def settings_among(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `generate`'s arguments that may be fields of its generation config."""
    others = {*inspect.signature(type(model).generate).parameters, *TOKENIZERS, "attention_mask"}
    return {name: value for name, value in arguments.items() if name not in others}


def beginning(model: Any, attention_mask: Any, generation_config: Any) -> Tensor:
    """The prompt of a call that has none, `[batch, 1]`: the BOS token, as transformers begins.

    Args:
        model: gives the device.
        attention_mask: gives the batch, where there is one.
        generation_config: the effective one.

    Raises:
        InputError: there is no BOS token.
    """
    bos = generation_config.bos_token_id
    if isinstance(bos, Tensor):
        bos = bos.tolist()
    if isinstance(bos, list) and len(bos) == 1:
        bos = bos[0]
    if not isinstance(bos, int):
        raise InputError(f"generate() got no input_ids, and bos_token_id, to begin with, is {bos}; pass one")
    batch = attention_mask.shape[0] if isinstance(attention_mask, Tensor) and attention_mask.dim() else 1
    return torch.full((batch, 1), bos, dtype=torch.long, device=model.device)


def whole_mask(input_ids: Any, attention_mask: Any, generation_config: Any) -> Tensor:
    """The mask of a batch, bool `[batch, columns]`: given or inferred, and checked.

    Args:
        input_ids: int `[batch, columns]`, padded on the left.
        attention_mask: 0/1 `[batch, columns]` of any dtype; where None it is inferred as transformers does, from
            the pad token.
        generation_config: the effective one, for pad and EOS tokens.

    Raises:
        InputError: not a 2-D integer tensor, a mask of anything but 0 and 1, an empty row, or padding anywhere but
            on the left.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.dtype not in _ID_DTYPES:
        what = (
            f"{str(input_ids.dtype).removeprefix('torch.')} {tuple(input_ids.shape)}"
            if isinstance(input_ids, Tensor)
            else type(input_ids).__name__
        )
        raise InputError(
            f"generate() takes input_ids as an integer tensor (int64) [batch, tokens], got {what}"
        )
    if input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise InputError("the prompt is empty; a model needs at least one token")
    if attention_mask is None:
        attention_mask = _inferred_mask(input_ids, generation_config)
    if not isinstance(attention_mask, Tensor):
        raise InputError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
    return check_mask(attention_mask, tuple(input_ids.shape))


def cache_argument(model: Any) -> str:
    """The argument in which the model's forward, and so `generate`, takes a cache.

    Raises:
        UnsupportedModel: under none that kvtrie knows.
    """
    for kind in type(model).__mro__:
        if "forward" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["forward"]).parameters
        for name in CACHE_ARGUMENTS:
            if name in parameters:
                return name
        if "input_ids" in parameters:
            # It names its arguments, rather than handing all of them on to the class above.
            break
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
