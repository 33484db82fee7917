"""Quantised keys and values in plain torch: one scale per token and KV head, absmax over the vector.

A scale per token needs no token but its own: what is written once never changes, whatever follows. KIVI (arXiv
2402.02750) scales keys per channel instead, whose outliers then cost less; that pays below 8 bits, and
`bench/quantisation.py` has what they cost here. `write_kernel.py` does the same on devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrie.prefix_tree.errors import InputError

STORED_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""The element that the largest of a vector becomes, by format."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""A vector whose scale would be smaller counts as zero: devices disagree on subnormal numbers."""


def check_format(kv_format: str, device: torch.device) -> None:
    """Whether a device computes on a KV format.

    Raises:
        InputError: fp8 on a GPU that has no float8_e4m3fn.
    """
    if kv_format != "fp8" or device.type == "cpu":
        return
    if torch.version.hip:
        # gfx942 has e4m3fnuz, whose bytes mean other numbers.
        raise InputError(f'kv_format="fp8" needs float8_e4m3fn, which {device} (ROCm) lacks; use "int8"')
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError(
            f'kv_format="fp8" needs a GPU of CUDA capability 8.9 or more, {device} is not one; use "int8"'
        )


def quantise(vectors: Tensor, kv_format: str) -> tuple[Tensor, Tensor]:
    """Elements and scales of vectors `[..., dim]` of any float dtype.

    A zero vector has scale 0. One that holds NaN or infinity has scale infinity and elements 0, so that reading
    it back gives NaN: it stays visible.

    Returns:
        elements `[..., dim]` in the format's dtype, and scales `[...]` in fp32.
    """
    exact = vectors.float()
    largest = exact.abs().amax(-1)
    scale = largest / LARGEST[kv_format]
    scale = torch.where(torch.isfinite(largest), scale, torch.inf)
    scale = torch.where(scale < SMALLEST_SCALE, 0.0, scale)
    has_elements = torch.isfinite(scale) & (scale > 0)
    ratio = exact / torch.where(has_elements, scale, 1.0)[..., None]
    ratio = torch.where(has_elements[..., None], ratio, 0.0)
    if kv_format == "int8":
        ratio = ratio.round()
    return ratio.to(STORED_DTYPES[kv_format]), scale


def dequantise(elements: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The values that elements `[..., dim]` encode, in `dtype`; `scale` is fp32 `[..., 1]`."""
    return (elements.float() * scale).to(dtype)


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """One layer's keys, or its values, as a pool stores them."""

    elements: Tensor
    """`[kv_heads, slots, chunk_tokens, dim]`"""
    scale: Tensor | None
    """fp32 `[kv_heads, slots, chunk_tokens]`; None for raw elements."""
    dtype: torch.dtype
    """Dtype that `read` returns."""

    @property
    def shape(self) -> torch.Size:
        """Shape of `elements`."""
        return self.elements.shape

    def read(self, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Reads the part of `[kv_heads, slots, chunk_tokens, dim]` that `take` selects, in `dtype`.

        `take` is called with the elements, and with the scales, whose dim is 1. Returns a view if elements are raw,
        else a copy.
        """
        if self.scale is None:
            return take(self.elements).to(self.dtype)
        return dequantise(take(self.elements), take(self.scale[..., None]), self.dtype)
