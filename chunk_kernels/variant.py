"""Variants of a layer's attention: window, softcap, ALiBi and sinks, besides the softmax over earlier keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """One layer's variant of attention; every part is optional, and all of them combine.

    In this order: score = scale * q.k, softcap, ALiBi, window, softmax over the keys seen and the sink.

    Raises:
        InputError: a window below 1, a softcap that is not positive, slopes or sinks that are no fp32 vector.
    """

    window: int | None = None
    """A query sees the last `window` positions, its own included."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118)."""
    slopes: Tensor | None = None
    """ALiBi slopes, fp32 `[q_heads]`: slope * distance is taken off a score (arXiv 2108.12409)."""
    sinks: Tensor | None = None
    """Logit of each head's attention sink, fp32 `[q_heads]`: it takes weight and gives no value."""

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InputError(f"window must be at least 1 token, got {self.window}; use None for no window")
        if self.softcap is not None and not (self.softcap > 0 and math.isfinite(self.softcap)):
            raise InputError(f"softcap must be positive and finite, got {self.softcap}; use None for none")
        for name, heads in (("slopes", self.slopes), ("sinks", self.sinks)):
            if heads is not None and (heads.dim() != 1 or heads.dtype != torch.float32):
                raise InputError(
                    f"{name} must be fp32 [q_heads], got {heads.dtype} {list(heads.shape)}; use {name}.float()"
                )

    def check_heads(self, q_heads: int, device: torch.device) -> None:
        """Whether slopes and sinks are there for this many heads, where the query is.

        Raises:
            InputError: one of them is for other heads, elsewhere, or has gaps in memory.
        """
        for name, heads in (("slopes", self.slopes), ("sinks", self.sinks)):
            if heads is None:
                continue
            if heads.shape[0] != q_heads:
                raise InputError(f"{name} are for {heads.shape[0]} heads, the query has {q_heads}")
            if heads.device != device:
                raise InputError(f"{name} are on {heads.device}, the query is on {device}; move them there")
            if not heads.is_contiguous():
                raise InputError(f"{name} have stride {heads.stride(0)}; use {name}.contiguous()")


PLAIN = Variant()
"""Softmax over all earlier keys, and nothing else."""
