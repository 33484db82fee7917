"""Prompts of `submit`, `stream` and `warm`: text, messages, token ids, or what a tokenizer returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtrie.api.engine.padding_mask import check_mask
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import TokenArray, as_tokens

Prompt = (
    str
    | Sequence[int]
    | Tensor
    | npt.NDArray[np.integer[Any]]
    | Sequence[Mapping[str, Any]]
    | Mapping[str, Any]
)

_SAID_BESIDES = frozenset(
    {
        "length",
        "num_truncated_tokens",
        "offset_mapping",
        "overflow_to_sample_mapping",
        "overflowing_tokens",
        "special_tokens_mask",
        "token_type_ids",
    }
)
"""Further outputs of tokenizers, which are ignored if the model's forward does not take them."""


class PromptReader:
    """Turns prompts of every form into token ids.

    Args:
        tokenizer: for text and messages; anything with `encode`, and `apply_chat_template` for messages. One that
            has a `bos_token` also takes `encode(..., add_special_tokens=False)`. None where prompts are ids.
        forward: the model's; an input that it takes besides ids and mask is refused where a prompt carries it.
    """

    def __init__(self, tokenizer: Any, forward: Callable[..., Any]) -> None:
        self._tokenizer = tokenizer
        self._forward = forward

    def tokens(self, prompt: Any, *, opens_reply: bool) -> TokenArray:
        """The prompt's token ids, int32 `[tokens]`.

        Args:
            prompt: see `Prompt`. Ids may have the shape `[1, tokens]`.
            opens_reply: whether messages are followed by the template's beginning of a reply.

        Raises:
            InputError: of no such form, several prompts, or text without a tokenizer.
        """
        if isinstance(prompt, str):
            return as_tokens(encode_text(self._needed("a text prompt"), prompt))
        if is_messages(prompt):
            return as_tokens(self._render(prompt, opens_reply))
        if isinstance(prompt, Mapping):
            return self._encoded(prompt)
        return as_tokens(_row("the prompt", prompt))

    def _needed(self, what: str) -> Any:
        if self._tokenizer is None:
            raise InputError(f"{what} needs PrefixCachedModel(model, tokenizer)")
        return self._tokenizer

    def _render(self, messages: Sequence[Mapping[str, Any]], opens_reply: bool) -> list[int]:
        tokenizer = self._needed("a prompt of messages")
        if not hasattr(tokenizer, "apply_chat_template"):
            raise InputError(
                f"messages need a tokenizer with apply_chat_template(), and {type(tokenizer).__name__} has none; "
                "pass text or token ids"
            )
        try:
            ids: list[int] = tokenizer.apply_chat_template(
                list(messages), tokenize=True, add_generation_prompt=opens_reply, return_dict=False
            )
        # A template is a program of its own, and raises what it pleases.
        except Exception as error:
            raise InputError(
                f"the tokenizer's chat template cannot render these messages: {error}"
            ) from error
        return ids

    def _encoded(self, encoding: Mapping[str, Any]) -> TokenArray:
        if encoding.get("input_ids") is None:
            raise InputError(
                f"a prompt given as a mapping needs input_ids, got {sorted(map(str, encoding))}; messages are a "
                'list of {"role": ..., "content": ...}'
            )
        taken = inspect.signature(self._forward).parameters
        for name, value in encoding.items():
            ignored = name in _SAID_BESIDES and name not in taken
            if value is not None and not ignored and name not in ("input_ids", "attention_mask"):
                raise InputError(
                    f"a prompt's {name} is not served; pass its input_ids and attention_mask only"
                )
        ids, mask = _row("input_ids", encoding["input_ids"]), encoding.get("attention_mask")
        if mask is not None:
            columns = torch.from_numpy(_row("attention_mask", mask).astype(np.float64))
            ids = ids[check_mask(columns[None], (1, len(ids)))[0].numpy()]
        return as_tokens(ids)


def is_messages(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text with the tokenizer's special tokens, but never with a second BOS.

    A text that begins with the BOS token was rendered by a chat template, which wrote all special tokens itself.
    """
    bos = getattr(tokenizer, "bos_token", None)
    if isinstance(bos, str) and bos and text.startswith(bos):
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(text))


def _row(name: str, given: Any) -> npt.NDArray[Any]:
    """Numbers `[columns]` or `[1, columns]`, as a list, tensor or array, as an array `[columns]`.

    Raises:
        InputError: none of these, or more than one row.
    """
    # 1. An array of whatever was given.
    if isinstance(given, Tensor):
        if given.device.type == "meta":
            raise InputError(f"{name} is on the meta device, which holds no values")
        # NumPy lacks bfloat16; floats are refused where integers are needed.
        given = given.detach().cpu()
        row: npt.NDArray[Any] = (given.double() if given.is_floating_point() else given).numpy()
    elif isinstance(given, (bytes, bytearray)) or not (
        isinstance(given, Sequence) or hasattr(given, "__array__")
    ):
        raise InputError(
            f"{name} must be text, messages, token ids or what a tokenizer returned, got {type(given).__name__}"
        )
    else:
        try:
            row = np.asarray(given)
        # Rows of uneven lengths.
        except (TypeError, ValueError):
            raise InputError(f"{name} must be one row of integers; pass one prompt at a time") from None
    # 2. One row of it, of numbers.
    if row.ndim == 2 and row.shape[0] == 1:
        row = row[0]
    if row.ndim == 2:
        raise InputError(f"{name} holds {row.shape[0]} rows; pass one prompt at a time")
    if row.ndim == 1 and row.dtype.kind not in "biufc" and row.size:
        what = type(row[0]).__name__ if row.dtype.kind == "O" else "text"
        raise InputError(f"{name} must be one row of integers, got a list that holds {what}; pass one prompt")
    return row
