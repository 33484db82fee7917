"""The attention function that Hugging Face's layers call in a `ModelView`.

Hugging Face looks its attention function up by name in the config at every layer, and hands it every extra
keyword of `model(...)`. A view's config names ours, and the step travels as a keyword. No mask is built for a
name Hugging Face does not know.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from kvtrie.chunk_kernels import (
    PLAIN,
    ChunkPool,
    DecodeLanes,
    LaunchPlan,
    Step,
    Variant,
    attend,
    write_kv,
    write_triton,
)
from kvtrie.prefix_tree.errors import UnsupportedModel

NAME = "kvtrie"
KEYWORD = "kvtrie_step"

WINDOW, SOFTCAP, SINKS = "sliding_window", "softcap", "s_aux"
"""Keywords that become the layer's `Variant`; the same names from transformers 5.0 on."""

UNDERSTOOD = frozenset(
    {
        KEYWORD,
        WINDOW,
        SOFTCAP,
        SINKS,
        "logits_to_keep",
        "output_attentions",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)
"""Keywords a layer may pass."""


class LayerAttention(Protocol):
    """A model's attention during one forward pass."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, variant: Variant
    ) -> Tensor:
        """Takes in new keys and values, returns attention: all `[rows, heads, dim]`, rows packed."""


class PoolAttention:
    """Writes new KV into the pool and attends over the step's paths."""

    def __init__(self, pool: ChunkPool, step: Step) -> None:
        self._pool = pool
        self._step = step
        self._reached = 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, variant: Variant
    ) -> Tensor:
        """See `LayerAttention.attend`."""
        self._reached += 1
        write_kv(self._pool, layer, self._step.write_at, key, value)
        out, _ = attend(query, self._pool, layer, self._step, scale, variant)
        return out

    def check_reached(self) -> None:
        """Whether every layer of a pass that is over attended here.

        Raises:
            UnsupportedModel: a layer did not: its forward was replaced since the model was wrapped.
        """
        layers = self._pool.shape.layers
        if self._reached != layers:
            raise UnsupportedModel(
                f"{self._reached} of {layers} layers reached kvtrie's attention: a layer's forward was replaced "
                "after the model was wrapped; put it back, or wrap the model again"
            )


class LanesAttention:
    """As `PoolAttention`, over lanes that stay where they are: every launch can be captured and replayed."""

    def __init__(self, lanes: DecodeLanes, launch: LaunchPlan) -> None:
        self._lanes = lanes
        self._launch = launch

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, variant: Variant
    ) -> Tensor:
        """See `LayerAttention.attend`."""
        # Imported where it is needed: Triton is Linux only, and the CPU path does without.
        from kvtrie.chunk_kernels.attend_triton import attend_triton

        pool = self._lanes.pool
        write_triton(pool, layer, self._lanes.write_at, key, value)
        out, _ = attend_triton(query, pool, layer, self._launch, scale, variant)
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
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedModel(
            f"{name} attends in both directions; what it caches would depend on later tokens"
        )
    batch, _, rows, key_dim = query.shape
    out = step.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        _packed(query),
        _packed(key),
        _packed(value),
        key_dim**-0.5 if scaling is None else scaling,
        _variant(keywords),
    )
    return out.view(batch, rows, out.shape[1], out.shape[2]), None


def _variant(keywords: dict[str, Any]) -> Variant:
    window, softcap, sinks = (keywords.get(name) for name in (WINDOW, SOFTCAP, SINKS))
    if window is None and softcap is None and sinks is None:
        return PLAIN
    return Variant(window, softcap, sinks=None if sinks is None else sinks.detach().float())


def _packed(heads_first: Tensor) -> Tensor:
    """`[batch, heads, rows, dim]` as `[batch * rows, heads, dim]`."""
    return heads_first.transpose(1, 2).flatten(0, 1)
