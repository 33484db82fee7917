"""A step's work as integers for the Triton kernel: items, the slot table, and which partials are merged.

Items that store partials read shared runs, and pieces of private runs that are long enough to be split. Items that
finish rows are one per tile of each sequence's rows, over its private run (or nothing), with the list of partials
to merge. The longest items come first, so that the last ones to start are short.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvtrie.chunk_kernels.tilings import Tiling, Tilings
from kvtrie.chunk_kernels.work_split import CostModel, WorkSplit, piece_tokens, split_work
from kvtrie.prefix_tree.plan import Plan
from kvtrie.prefix_tree.shape import ChunkShape


class Item(NamedTuple):
    """One program's work under one KV head. The kernel reads the fields by place: `attend_kernel.py` names them."""

    first_row: int
    rows: int
    """Query rows of the item's readers, adjacent in plan order."""
    m_start: int
    """First (row, group head) pair of this tile."""
    slots_at: int
    """Where the run's slots begin in the slot table."""
    from_token: int
    """Tokens of the run this item attends to, half-open."""
    end_token: int
    """End of these tokens; may be beyond the rows' positions, since the kernel applies causality."""
    start_position: int
    """Absolute position of the run's first token."""
    partial_at: int = 0
    """First partial of the run or piece, for items that store one."""
    merges_at: int = 0
    """Entry in the merge index, for items that finish rows."""


class Merge(NamedTuple):
    """A partial that a finishing item merges into its rows."""

    partial_at: int
    first_row: int
    """First row of the item that stored it."""
    rows: int


ITEM_FIELDS = len(Item._fields)
MERGE_FIELDS = len(Merge._fields)

COUNTS = 4
"""int32 before the items: items that store partials, items that finish rows, and two unused ones."""


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
        """Whether arrays of `other` sizes fit into arrays of these."""
        return all(mine >= theirs for mine, theirs in zip(self, other))

    def extents(self) -> list[tuple[int, int]]:
        """Offset and length of each array in the packed int32 buffer, the slot table last.

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
    partial_items: list[Item]
    finish_items: list[Item]
    order: Sequence[int]
    merge_index: list[tuple[int, int]]
    merges: list[Merge]
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
    return builder.work(split_work(plan, shape, group, cost), order, idle)


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
        self._partial: list[Item] = []
        self._finish: list[Item] = []
        self._merges_of: list[list[Merge]] = [[] for _ in plan.order]
        self._partials = 0
        self._tile_tokens = 0
        """Tokens times tiles of the whole step, under one KV head."""

    def work(self, split: WorkSplit, order: Sequence[int], idle: Sequence[int]) -> Work:
        """All items, merges and slots of the plan, split as `split` decided."""
        shared, own_from = split
        chunk, starts = self._shape.chunk_tokens, self._starts
        # 1. How much there is to do in all: pieces are sized by it.
        own = [tokens - begin * chunk for tokens, begin in zip(self._tokens, own_from)]
        for first, end, begin, stop in shared:
            rows, tokens = starts[end] - starts[first], (stop - begin) * chunk
            self._tile_tokens += tokens * self._tiles(rows, self._tilings.partial)
        for tokens, start, next_start in zip(own, starts, starts[1:]):
            self._tile_tokens += tokens * self._tiles(next_start - start, self._tilings.finish)
        # 2. Shared runs, each read once for all its readers.
        for first, end, begin, stop in shared:
            slots_at, tokens = len(self._slots), (stop - begin) * chunk
            self._slots.extend(self._paths[first][begin:stop])
            piece = self._piece(tokens, starts[end] - starts[first])
            self._add_partials(first, end, slots_at, begin * chunk, tokens, piece)
        # 3. What each sequence reads by itself; these items finish its rows.
        for place, (tokens, begin) in enumerate(zip(own, own_from)):
            self._add_own(place, begin, tokens)
        # 4. The partials that each sequence's items merge.
        index: list[tuple[int, int]] = []
        merges: list[Merge] = []
        for found in self._merges_of:
            index.append((len(merges), len(found)))
            merges += found
        # 5. Rows that no sequence has are finished with nothing.
        for row in range(len(order), len(order) + len(idle)):
            for m_start in range(0, self._group, self._tilings.finish.block_m):
                self._finish.append(Item(row, 1, m_start, 0, 0, 0, 0, merges_at=len(index)))
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
                    Item(first_row, rows, m_start, slots_at, begin, stop, start_token, self._partials)
                )
            merge = Merge(self._partials, first_row, rows)
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
            self._finish.append(Item(first_row, rows, m_start, slots_at, 0, tokens, start, 0, place))


def _shortness(item: Item) -> int:
    return item.from_token - item.end_token
