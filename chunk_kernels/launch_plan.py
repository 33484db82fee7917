"""A step as the arrays the Triton kernel reads: work items, slot table, merges.

Everything is int32 in one upload. Items that store partials: shared runs, and pieces of private runs that are long
enough to be cut. Items that finish: one per tile of each sequence's rows, over its private run (or nothing), with
the list of partials to merge. Longest items first, so that the last ones to start are short.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtrie.chunk_kernels.cutting import CostModel, Cutting, cut, piece_tokens
from kvtrie.chunk_kernels.step import Step, caller_order
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.plan import Plan, PlanSequence
from kvtrie.prefix_tree.plan_check import check_plan
from kvtrie.prefix_tree.planner import make_plan
from kvtrie.prefix_tree.shape import ChunkShape

ITEM_FIELDS = 9
"""int32 per item: first_row, rows, m_start, slots_at, from_token, end_token, start_position, partial_at, merges_at.

    rows ........... query rows of the item's readers, adjacent in plan order
    m_start ........ first (row, group head) pair of this tile
    slots_at ....... where the run's slots begin in the slot table
    from, end ...... tokens of the run this item attends to, half-open; the end may lie beyond the rows'
                     positions, for causality cuts it
    start_position . absolute position of the run's first token
    partial_at ..... first partial of the run or piece (those that store one)
    merges_at ...... entry in the merge index (those that finish)
"""

MERGE_FIELDS = 3
"""int32 per partial to merge: partial_at, first_row, rows of the item that left it."""

COUNTS = 4
"""int32 before the items: items that store partials, items that finish, and two that are free."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a tile is computed, for one device and shape."""

    block_m: int = 16
    """(row, group head) pairs per tile: 16 or more, a power of two."""
    block_n: int = 64
    """Tokens per inner step, a power of two."""
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None
    """Per thread, on NVIDIA. Unsaid, the assembler may put a few bytes on the stack to fit more programs."""


@dataclass(frozen=True, slots=True)
class Tilings:
    """How a step's two launches are tiled."""

    partial: Tiling = Tiling()
    """Shared runs, with the rows of all their readers, and pieces of long private runs."""
    finish: Tiling = Tiling()
    """Each sequence's own rows."""


class Sizes(NamedTuple):
    """Room for each array, in entries: exactly a step's, or the capacity of a captured graph."""

    partial_items: int
    finish_items: int
    partials: int
    """Rows of the partial buffers, over all KV heads."""
    rows: int
    sequences: int
    merges: int
    slots: int

    def hold(self, other: Sizes) -> bool:
        """Whether arrays of `other`'s sizes fit."""
        return all(mine >= theirs for mine, theirs in zip(self, other))

    def extents(self) -> list[tuple[int, int]]:
        """Where each array lies in the packed int32 buffer: (offset, length), the slot table last.

        Each starts on 16 bytes, so that the kernel may load it in vectors.
        """
        lengths = (
            COUNTS,
            self.partial_items * ITEM_FIELDS,
            self.finish_items * ITEM_FIELDS,
            self.rows,
            self.sequences * 2,
            self.merges * MERGE_FIELDS,
            self.slots,
        )
        found, at = [], 0
        for length in lengths:
            found.append((at, length))
            at += -(-length // 4) * 4
        return found

    @property
    def packed(self) -> int:
        """int32 of the whole buffer."""
        at, length = self.extents()[-1]
        return at + -(-max(1, length) // 4) * 4


class Work(NamedTuple):
    """A step's work as plain integers, ready to be packed."""

    sizes: Sizes
    partial_items: list[tuple[int, ...]]
    finish_items: list[tuple[int, ...]]
    order: Sequence[int]
    merge_index: list[tuple[int, int]]
    merges: list[tuple[int, int, int]]
    slots: array[int]

    def pack(self, into: npt.NDArray[np.int32], sizes: Sizes) -> int:
        """Writes the arrays where a buffer of `sizes` has them. Returns how much of it is in use."""
        counts = (len(self.partial_items), len(self.finish_items), 0, 0)
        parts: tuple[Sequence[object], ...] = (
            counts,
            self.partial_items,
            self.finish_items,
            self.order,
            self.merge_index,
            self.merges,
            self.slots,
        )
        end = 0
        for (at, _), part in zip(sizes.extents(), parts):
            if part:
                flat = np.array(part, np.int32).ravel()
                end = at + flat.size
                into[at:end] = flat
        return end


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One step, ready to launch; tensors on the pool's device, int32 unless said."""

    tilings: Tilings
    sizes: Sizes
    """Of the grids and buffers; the kernel takes the number of items from `counts`."""
    counts: Tensor
    """`[4]`: partial items, finishing items."""
    items_partial: Tensor
    """`[partial_items, ITEM_FIELDS]`"""
    items_finish: Tensor
    """`[finish_items, ITEM_FIELDS]`"""
    order: Tensor
    """`[rows]`: the caller's row of each plan row."""
    merge_index: Tensor
    """`[sequences, 2]`: first merge and number of merges of each sequence."""
    merges: Tensor
    """`[merges, MERGE_FIELDS]`"""
    slots: Tensor
    """`[table]`: slots of every run, one after the other."""
    positions: Tensor
    """int64 `[rows]`: absolute position of each row, in the caller's order."""


def launch_plan(step: Step, group: int, tilings: Tilings, cost: CostModel) -> LaunchPlan:
    """The step's arrays for the kernel; made once per step, for all layers.

    Args:
        step: from `prepare_step`.
        group: query heads per KV head.
        tilings: how tiles are computed.
        cost: of the device.
    """
    return step.derived((LaunchPlan, group, tilings, cost), lambda step: _make(step, group, tilings, cost))


def _make(step: Step, group: int, tilings: Tilings, cost: CostModel) -> LaunchPlan:
    sequences, shape = step.sequences, step.pool.shape
    readers = [PlanSequence(s.slots, s.context_tokens + s.rows, s.rows) for s in sequences]
    plan = make_plan(readers, shape.chunk_tokens)
    if checks_wanted():
        check_plan(plan, readers, shape.chunk_tokens)
    work = plan_work(plan, caller_order(plan, sequences), shape, group, tilings, cost)
    packed = np.zeros(work.sizes.packed, np.int32)
    work.pack(packed, work.sizes)
    buffer = torch.from_numpy(packed).to(step.pool.device)
    return launch_over(buffer, work.sizes, step.positions, tilings)


def launch_over(buffer: Tensor, sizes: Sizes, positions: Tensor, tilings: Tilings) -> LaunchPlan:
    """The views of a packed buffer (int32, `sizes.packed` long) that the kernel takes."""
    counts, partial, finish, order, index, merges, slots = (
        buffer[at : at + length] for at, length in sizes.extents()
    )
    return LaunchPlan(
        tilings,
        sizes,
        counts,
        partial.view(-1, ITEM_FIELDS),
        finish.view(-1, ITEM_FIELDS),
        order,
        index.view(-1, 2),
        merges.view(-1, MERGE_FIELDS),
        slots,
        positions,
    )


def plan_work(
    plan: Plan,
    order: Sequence[int],
    shape: ChunkShape,
    group: int,
    tilings: Tilings,
    cost: CostModel,
    idle: Sequence[int] = (),
) -> Work:
    """The items, merges and slot table of a plan.

    Args:
        plan: who reads what, new tokens included.
        order: the caller's row of each plan row.
        shape: of the pool's chunks.
        group: query heads per KV head.
        tilings: how tiles are computed.
        cost: of the device.
        idle: rows of the caller that no sequence has; their output is 0.
    """
    builder = _Builder(plan, shape, group, tilings, cost)
    return builder.work(cut(plan, shape, group, cost), order, idle)


class _Builder:
    """Gathers a plan's items as lists."""

    def __init__(
        self,
        plan: Plan,
        shape: ChunkShape,
        group: int,
        tilings: Tilings,
        cost: CostModel,
    ) -> None:
        self._starts = plan.row_starts
        self._paths = plan.paths
        self._tokens = plan.tokens
        self._shape = shape
        self._group = group
        self._tilings = tilings
        self._cost = cost
        self._slots = array("i")
        self._partial: list[tuple[int, ...]] = []
        self._finish: list[tuple[int, ...]] = []
        self._merges_of: list[list[tuple[int, int, int]]] = [[] for _ in plan.order]
        self._partials = 0
        self._tile_tokens = 0
        """Tokens times tiles of the whole step, under one KV head."""

    def work(self, cutting: Cutting, order: Sequence[int], idle: Sequence[int]) -> Work:
        """Everything, cut as `cutting` says."""
        shared, own_from = cutting
        chunk, starts = self._shape.chunk_tokens, self._starts
        own = [tokens - begin * chunk for tokens, begin in zip(self._tokens, own_from)]
        for first, end, begin, stop in shared:
            rows, tokens = starts[end] - starts[first], (stop - begin) * chunk
            self._tile_tokens += tokens * self._tiles(rows, self._tilings.partial)
        for tokens, start, next_start in zip(own, starts, starts[1:]):
            self._tile_tokens += tokens * self._tiles(next_start - start, self._tilings.finish)
        for first, end, begin, stop in shared:
            slots_at, tokens = len(self._slots), (stop - begin) * chunk
            self._slots.extend(self._paths[first][begin:stop])
            piece = self._piece(tokens, starts[end] - starts[first])
            self._add_partials(first, end, slots_at, begin * chunk, tokens, piece)
        for place, (tokens, begin) in enumerate(zip(own, own_from)):
            self._add_own(place, begin, tokens)
        index: list[tuple[int, int]] = []
        merges: list[tuple[int, int, int]] = []
        for found in self._merges_of:
            index.append((len(merges), len(found)))
            merges += found
        for row in range(len(order), len(order) + len(idle)):
            for m_start in range(0, self._group, self._tilings.finish.block_m):
                self._finish.append((row, 1, m_start, 0, 0, 0, 0, 0, len(index)))
            index.append((len(merges), 0))
        self._partial.sort(key=_shortness)
        self._finish.sort(key=_shortness)
        sizes = Sizes(
            len(self._partial),
            len(self._finish),
            self._partials,
            len(order) + len(idle),
            len(index),
            len(merges),
            len(self._slots),
        )
        all_rows = [*order, *idle]
        return Work(sizes, self._partial, self._finish, all_rows, index, merges, self._slots)

    def _tiles(self, rows: int, tiling: Tiling) -> int:
        return -(-rows * self._group // tiling.block_m)

    def _piece(self, tokens: int, rows: int) -> int:
        pairs, block_n = rows * self._group, self._tilings.partial.block_n
        return piece_tokens(tokens, pairs, self._tile_tokens, self._shape, block_n, self._cost)

    def _add_partials(
        self, first: int, end: int, slots_at: int, start_token: int, tokens: int, piece: int
    ) -> None:
        """Items over all pieces of a run, each leaving a partial for every row of the run's readers."""
        first_row = self._starts[first]
        rows = self._starts[end] - first_row
        pairs = rows * self._group
        for begin in range(0, tokens, piece):
            stop = min(begin + piece, tokens)
            for m_start in range(0, pairs, self._tilings.partial.block_m):
                self._partial.append(
                    (first_row, rows, m_start, slots_at, begin, stop, start_token, self._partials, 0)
                )
            merge = (self._partials, first_row, rows)
            for place in range(first, end):
                self._merges_of[place].append(merge)
            self._partials += pairs * self._shape.kv_heads

    def _add_own(self, place: int, begin: int, tokens: int) -> None:
        """The items that finish one sequence's rows, over its private run where that is not cut."""
        first_row, end_row = self._starts[place], self._starts[place + 1]
        rows, tiling, chunk = end_row - first_row, self._tilings.finish, self._shape.chunk_tokens
        slots_at, start = len(self._slots), begin * chunk
        if tokens:
            self._slots.extend(self._paths[place][begin : -(-(start + tokens) // chunk)])
            if tokens >= 2 * self._cost.least_piece_tokens and tokens > (piece := self._piece(tokens, rows)):
                self._add_partials(place, place + 1, slots_at, start, tokens, piece)
                tokens = 0
        for m_start in range(0, rows * self._group, tiling.block_m):
            self._finish.append((first_row, rows, m_start, slots_at, 0, tokens, start, 0, place))


def _shortness(item: tuple[int, ...]) -> int:
    return item[4] - item[5]
