"""Which tilings are tried for which class of launches, and on which shapes they are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from bench.gpu.ours import Tiling
from bench.gpu.shapes import Scale, Shape, levels

NARROW_PAIRS = 16


@dataclass(frozen=True, slots=True)
class Class:
    """Launches that one row of a table is for."""

    dtype: str
    dim: int
    most_pairs: int | None
    """As in the table: narrow launches have at most so many (row, group head) pairs; None for the wide ones."""

    def takes(self, pairs: int) -> bool:
        """Whether a launch with so many pairs is of this class."""
        return (pairs <= NARROW_PAIRS) == (self.most_pairs is not None)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.dtype} dim {self.dim} {'narrow' if self.most_pairs else 'wide'}"


CLASSES = tuple(
    Class(dtype, dim, pairs)
    for dim in (128, 64, 256)
    for pairs in (None, NARROW_PAIRS)
    for dtype in ("bfloat16",)
)
"""The grid's class first. fp16 compiles alike and takes bf16's rows; fp32 keeps its own."""


def candidates(which: Class, current: Tiling) -> Iterator[Tiling]:
    """The one in the table first; then every other. What a tiling holds besides sizes is kept."""
    yield current
    tall = (16,) if which.most_pairs is not None else (32, 64, 128)
    wide = (32, 64, 128) if which.dim <= 128 else (16, 32, 64)
    for block_m, block_n, warps, stages in product(tall, wide, (4, 8), (2, 3, 4)):
        if block_m >= 64 and warps == 4 and which.dim > 128:
            continue  # accumulators alone would fill the registers
        found = replace(current, block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages)
        if found != current:
            yield found


def shapes(which: Class, scale: Scale) -> list[Shape]:
    """What a class is judged on: decoding over shared and long private runs, and prefill, for the wide ones."""
    if which.most_pairs is not None:
        found = [
            levels("b64 L2048 unshared", "tune", (64,), (2048,), scale),
            levels("b1 L32768", "tune", (1,), (32768,), scale),
            levels("b4 prefix 8192", "tune", (1, 4), (8192, 256), scale),
        ]
    else:
        found = [
            levels("b64 prefix 8192 own 128", "tune", (1, 64), (8192, 128), scale),
            levels("b256 prefix 2048 own 128", "tune", (1, 256), (2048, 128), scale),
            levels("prefill 256 on 4096 b8", "tune", (1, 8), (4096, 256), scale, rows=256),
        ]
    dim = min(which.dim, 32) if scale.dim < 128 else which.dim
    return [replace(shape, dim=dim) for shape in found]
