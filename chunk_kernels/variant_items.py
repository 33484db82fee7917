"""Items of a step for layers with a window, softcap or bias: cut from the plain items (`torch_items.py`).

Rows are taken in blocks. Of the keys of a run, a block of rows at positions `low..high` sees, for window w:

    start      low-w+1        high-w+1             low            high
      | no row    |   some rows   |    every row     |  some rows   | no row
      | dropped   |   masked      |    a `RunItem`   |  masked, or a causal square

So a run outside every row's window costs nothing, and one inside all of them costs as much as without a window.
Layers that cap or bias their scores take `DenseItem`s throughout: no fused kernel of torch does either and returns
its lse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.step import Step
from kvtrie.chunk_kernels.torch_items import (
    CausalItem,
    RunItem,
    SlabItem,
    Span,
    TorchWork,
    slab_mask,
    torch_work,
)
from kvtrie.chunk_kernels.variant import Variant

BLOCK_ROWS = 256
"""Most rows of a block: what is masked grows with its square, the number of items falls with it."""

BLOCK_TOKENS = 1024
"""Most keys of a `DenseItem`, whose scores are held in memory: 32 heads x 256 rows x 1024 keys are 32 MiB."""

LEAST_SQUARE_ROWS = 64
"""A window below this is masked inside squares of this size, instead of making more and smaller ones."""


@dataclass(frozen=True, slots=True)
class DenseItem:
    """Rows `[first_row, end_row)` attend to what they see of a span, by plain operations."""

    span: Span
    start: int
    """Absolute position of the span's first token."""
    first_row: int
    end_row: int
    positions: Tensor
    """int64 `[rows]`, absolute."""
    mask: Tensor | None
    """Additive fp32 `[rows, tokens]`; None where every row sees every key."""
    fresh: bool


@dataclass(frozen=True, slots=True)
class DenseSlab:
    """A slab by plain operations."""

    slab: SlabItem
    distances: Tensor
    """fp32 `[sequences, 1, 1, tokens]`: from each key to its sequence's row."""
    fresh: bool


VariedItem = RunItem | CausalItem | SlabItem | DenseItem | DenseSlab


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of one kind share their items. Also the key that a step keeps them under."""

    window: int | None
    is_dense: bool


def varied_items(step: Step, variant: Variant) -> tuple[VariedItem, ...]:
    """The step's items for a layer of this variant; made once per step and kind of layer."""
    work = torch_work(step)
    window = variant.window
    if window is not None and window >= work.most_tokens:
        window = None
    kind = _Kind(window, is_dense=variant.softcap is not None or variant.slopes is not None)
    if kind == _Kind(None, is_dense=False):
        return work.items
    return step.derived(kind, lambda step: _make(step, work, kind))


def _make(step: Step, work: TorchWork, kind: _Kind) -> tuple[VariedItem, ...]:
    in_order = [step.sequences[index] for index in work.order]
    positions = np.concatenate(
        [np.arange(s.context_tokens, s.context_tokens + s.rows, dtype=np.int64) for s in in_order]
    )
    cut = _Cut(step.pool, kind, positions)
    items: list[VariedItem] = []
    touched = np.zeros(work.rows, dtype=bool)
    for item in (piece for whole in work.items for piece in cut.pieces(whole)):
        slab = item.slab if isinstance(item, DenseSlab) else item
        rows = slab.rows.numpy() if isinstance(slab, SlabItem) else slice(slab.first_row, slab.end_row)
        items.append(replace(item, fresh=not touched[rows].any()))
        touched[rows] = True
    return tuple(items)


class _Cut:
    """Cuts items for one kind of layer. Whether a piece is fresh is settled afterwards."""

    def __init__(self, pool: ChunkPool, kind: _Kind, positions: npt.NDArray[np.int64]) -> None:
        self._pool = pool
        self._is_dense = kind.is_dense
        self._window = kind.window
        # Wider than any sequence, so that arithmetic needs no special case.
        self._width = 1 << 40 if kind.window is None else kind.window
        self._positions = positions
        self._row_positions = torch.from_numpy(positions).to(pool.device)

    def pieces(self, item: RunItem | CausalItem | SlabItem) -> Iterator[VariedItem]:
        """Items for the part of an item that some row sees."""
        if isinstance(item, SlabItem):
            yield self._slab(item)
        elif isinstance(item, CausalItem) and not self._is_dense:
            yield from self._causal(item)
        elif isinstance(item, RunItem) and not self._is_dense and self._sees_all(item):
            yield item
        else:
            yield from self._blocks(item.span, item.start, item.first_row, item.end_row)

    def _sees_all(self, item: RunItem) -> bool:
        positions = self._positions[item.first_row : item.end_row]
        return item.start > int(positions.max()) - self._width

    def _causal(self, item: CausalItem) -> Iterator[VariedItem]:
        rows = item.end_row - item.first_row
        if rows <= self._width:
            yield item
            return
        block = min(BLOCK_ROWS, max(self._width, LEAST_SQUARE_ROWS))
        for first in range(item.first_row, item.end_row, block):
            end = min(first + block, item.end_row)
            before, through = first - item.first_row, end - item.first_row
            if before:
                yield from self._blocks(self._part(item.span, 0, before), item.start, first, end)
            square, start = self._part(item.span, before, through), item.start + before
            if end - first <= self._width:
                yield CausalItem(square, start, first, end, fresh=False)
            else:
                yield from self._blocks(square, start, first, end)

    def _blocks(self, span: Span, start: int, first_row: int, end_row: int) -> Iterator[VariedItem]:
        for first in range(first_row, end_row, BLOCK_ROWS):
            end = min(first + BLOCK_ROWS, end_row)
            positions = self._positions[first:end]
            low, high = int(positions.min()), int(positions.max())
            # Absolute key positions, half-open: seen by any row, and by every row.
            any_from, any_end = max(start, low - self._width + 1), min(start + span.tokens, high + 1)
            all_from, all_end = max(start, high - self._width + 1), min(start + span.tokens, low + 1)
            if self._is_dense or all_from >= all_end:
                yield from self._dense(span, start, any_from, any_end, first, end)
                continue
            yield from self._dense(span, start, any_from, all_from, first, end)
            yield RunItem(
                self._part(span, all_from - start, all_end - start), all_from, first, end, fresh=False
            )
            yield from self._dense(span, start, all_end, any_end, first, end)

    def _dense(
        self, span: Span, start: int, key_from: int, key_end: int, first: int, end: int
    ) -> Iterator[DenseItem]:
        """Keys at `[key_from, key_end)`, which may be none, for rows `[first, end)`."""
        positions = self._row_positions[first:end]
        for key in range(key_from, key_end, BLOCK_TOKENS):
            part = self._part(span, key - start, min(key + BLOCK_TOKENS, key_end) - start)
            distance = positions[:, None] - torch.arange(key, key + part.tokens, device=self._pool.device)
            hidden = (distance < 0) | (distance >= self._width)
            mask = None
            if hidden.any():
                mask = torch.zeros(hidden.shape, device=self._pool.device).masked_fill_(hidden, -torch.inf)
            yield DenseItem(part, key, first, end, positions, mask, fresh=False)

    def _slab(self, item: SlabItem) -> SlabItem | DenseSlab:
        if self._window is not None and self._window < item.tokens:
            item = replace(item, mask=slab_mask(item.lengths, self._window, self._pool))
        if not self._is_dense:
            return item
        last = torch.tensor(item.lengths, device=self._pool.device)[:, None] - 1
        distances = (last - torch.arange(item.tokens, device=self._pool.device)[None]).float()
        return DenseSlab(item, distances[:, None, None], fresh=False)

    def _part(self, span: Span, first: int, end: int) -> Span:
        return span.part(first, end, self._pool.shape.chunk_tokens)
