"""How a step reaches the attention layers of a Hugging Face model, and leaves no trace.

Hugging Face looks its attention function up by name in the config at every layer, and hands it every extra
keyword of `model(...)`. So for one forward pass the config names ours, and the step travels as a keyword.
No mask is built for a name Hugging Face does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from kvtrie.chunk_kernels import ChunkPool, Step, attend, write_kv
from kvtrie.prefix_tree.errors import UnsupportedModel

NAME = "kvtrie"
KEYWORD = "kvtrie_step"

UNDERSTOOD = frozenset(
    {KEYWORD, "output_attentions", "output_router_logits", "position_ids", "sliding_window", "use_cache"}
)
"""Keywords a layer may pass. A window is understood because sequences are kept within it (`ModelFacts`)."""


class LayerAttention(Protocol):
    """What stands in for a model's own attention during one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Takes in new keys and values, returns attention: all `[rows, heads, dim]`, rows packed."""


class PoolAttention:
    """Writes new KV into the pool and attends over the step's paths."""

    def __init__(self, pool: ChunkPool, step: Step) -> None:
        self._pool = pool
        self._step = step

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `LayerAttention.attend`."""
        write_kv(self._pool, layer, self._step.write_at, key, value)
        out, _ = attend(query, self._pool, layer, self._step, scale)
        return out


def layer_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """The function registered with Hugging Face.

    `query` is `[batch, q_heads, rows, key_dim]`, `key` and `value` likewise with KV heads not repeated;
    returns `[batch, rows, q_heads, value_dim]`, and no weights.

    Raises:
        UnsupportedModel: the layer wants something of attention that kvtrie does not compute.
    """
    name = type(module).__name__
    step: LayerAttention | None = keywords.get(KEYWORD)
    if step is None:
        raise UnsupportedModel(f"{name} does not hand keywords on to its attention function")
    for keyword, setting in keywords.items():
        if setting is not None and keyword not in UNDERSTOOD:
            raise UnsupportedModel(
                f"{name} asks attention for {keyword}={setting!r}, which kvtrie does not compute"
            )
    if attention_mask is not None:
        raise UnsupportedModel(f"{name} builds an attention mask of its own")
    batch, _, rows, key_dim = query.shape
    out = step.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        _packed(query),
        _packed(key),
        _packed(value),
        key_dim**-0.5 if scaling is None else scaling,
    )
    return out.view(batch, rows, out.shape[1], out.shape[2]), None


@contextmanager
def attention_switched(config: Any) -> Iterator[None]:
    """Names our attention function in a model's text config, and puts the old name back in any case."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, layer_attention)
    # The public setter validates and logs; this is the field that every layer reads.
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _packed(heads_first: Tensor) -> Tensor:
    """`[batch, heads, rows, dim]` as `[batch * rows, heads, dim]`."""
    return heads_first.transpose(1, 2).flatten(0, 1)
