"""Attention masks of prompts: which columns are padding."""

from __future__ import annotations

from torch import Tensor

from kvtrie.prefix_tree.errors import InputError


def check_mask(attention_mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Checks that a mask marks padding on the left and nothing else; returns it as bool.

    Args:
        attention_mask: `[batch, columns]`, of any dtype.
        shape: of the ids, `(batch, columns)`.

    Raises:
        InputError: another shape, values besides 0 and 1, a row without tokens, or padding that is not on the left.
    """
    if attention_mask.shape != shape:
        raise InputError(
            f"attention_mask {tuple(attention_mask.shape)} does not have the shape of input_ids {shape}"
        )
    kept = attention_mask == 1
    odd = attention_mask[~kept & (attention_mask != 0)]
    if odd.numel():
        # Transformers adds such values up to positions, so they are no other way of writing 1.
        raise InputError(
            f"attention_mask holds {odd[0].item()}; its values are 0 for padding and 1 for tokens"
        )
    if not kept.any(-1).all():
        row = int((~kept.any(-1)).nonzero()[0])
        raise InputError(f"the prompt in row {row} is empty: its attention mask is all zeros")
    if not kept[:, -1].all() or (kept[:, :-1] & ~kept[:, 1:]).any():
        raise InputError('prompts must be padded on the left only: use tokenizer.padding_side = "left"')
    return kept
