"""A step as the arrays the Triton kernel reads: work items, slot table, merges.

Everything is int32 in one upload. Items that store partials: shared runs, and pieces of private runs that are long
enough to be split. Items that finish: one per tile of each sequence's rows, over its private run (or nothing), with
the list of partials to merge. Longest items first, so that the last ones to start are short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtrie.chunk_kernels.step import Step, caller_order
from kvtrie.prefix_tree.plan import Plan, PlanSequence, Run, make_plan

ITEM_FIELDS = 9
"""int32 per item: first_row, rows, m_start, slots_at, from_token, end_token, start_position, partial_at, merges_at.

    rows ........... query rows of the item's readers, adjacent in plan order
    m_start ........ first (row, group head) pair of this tile
    slots_at ....... where the run's slots begin in the slot table
    from, end ...... tokens of the run this item attends to, half-open
    start_position . absolute position of the run's first token
    partial_at ..... first partial of the run or piece (those that store one)
    merges_at ...... entry in the merge index (those that finish)
"""

MERGE_FIELDS = 3
"""int32 per partial to merge: partial_at, first_row, rows of the item that left it."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How work is cut for one device and shape."""

    block_m: int = 16
    """(row, group head) pairs per tile: 16 or more, a power of two."""
    block_n: int = 64
    """Tokens per inner step, a power of two."""
    split_tokens: int = 2048
    """A run longer than this is cut into pieces of about this length."""
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True, slots=True)
class Tilings:
    """How a step's two launches are cut."""

    partial: Tiling = Tiling()
    """Shared runs, with the rows of all their readers, and pieces of long private runs."""
    finish: Tiling = Tiling()
    """Each sequence's own rows."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One step, ready to launch; tensors int32 on the pool's device."""

    tilings: Tilings
    partial_items: int
    finish_items: int
    partials: int
    """Rows of the partial buffers, over all KV heads."""
    counts: Tensor
    """`[2]`: partial_items, finish_items."""
    items_partial: Tensor
    """`[partial_items, ITEM_FIELDS]`"""
    items_finish: Tensor
    """`[finish_items, ITEM_FIELDS]`"""
    slots: Tensor
    """`[table]`: slots of every run, one after the other."""
    positions: Tensor
    """`[rows]`: absolute position of each row, in plan order."""
    order: Tensor
    """`[rows]`: the caller's row of each plan row."""
    merge_index: Tensor
    """`[sequences, 2]`: first merge and number of merges of each sequence."""
    merges: Tensor
    """`[merges, MERGE_FIELDS]`"""


def launch_plan(step: Step, group: int, tilings: Tilings) -> LaunchPlan:
    """The step's arrays for the kernel; made once per step, for all layers.

    Args:
        step: from `prepare_step`.
        group: query heads per KV head.
        tilings: how to cut the work.
    """
    return step.derived((LaunchPlan, group, tilings), lambda step: _make(step, group, tilings))


def _make(step: Step, group: int, tilings: Tilings) -> LaunchPlan:
    sequences, pool = step.sequences, step.pool
    plan = make_plan(
        [PlanSequence(s.slots, s.context_tokens + s.rows, s.rows) for s in sequences], pool.shape.chunk_tokens
    )
    builder = _Builder(plan, tilings, group, pool.shape.kv_heads)
    private: list[Run | None] = [None] * len(sequences)
    for run in plan.runs:
        if run.readers == 1:
            private[run.first_reader] = run
        else:
            builder.add_partials(run, builder.put_slots(run))
    for place, own in enumerate(private):
        builder.finish(place, own)
    ordered = [sequences[index] for index in plan.order]
    positions = np.concatenate([np.arange(s.context_tokens, s.context_tokens + s.rows) for s in ordered])
    return builder.upload(np.array(caller_order(plan, sequences)), positions, pool.device)


class _Builder:
    """Gathers items as lists; `upload` makes tensors of them."""

    def __init__(self, plan: Plan, tilings: Tilings, group: int, kv_heads: int) -> None:
        self._plan = plan
        self._tilings = tilings
        self._group = group
        self._kv_heads = kv_heads
        self._slots: list[int] = []
        self._partial: list[tuple[int, ...]] = []
        self._finish: list[tuple[int, ...]] = []
        self._merges_of: list[list[tuple[int, int, int]]] = [[] for _ in plan.order]
        self._partials = 0

    def put_slots(self, run: Run) -> int:
        """Appends a run's slots to the table; where they begin."""
        at = len(self._slots)
        self._slots += run.slots
        return at

    def add_partials(self, run: Run, slots_at: int) -> None:
        """Items over all pieces of a run, each leaving a partial for every row of the run's readers."""
        first_row = self._plan.row_starts[run.first_reader]
        rows = self._plan.row_starts[run.end_reader] - first_row
        cut = self._tilings.partial
        pieces = -(-run.tokens // cut.split_tokens)
        piece = max(1, -(-run.tokens // pieces // cut.block_n)) * cut.block_n
        for begin in range(0, run.tokens, piece):
            end = min(begin + piece, run.tokens)
            for m_start in range(0, rows * self._group, cut.block_m):
                self._partial.append(
                    (first_row, rows, m_start, slots_at, begin, end, run.start_token, self._partials, 0)
                )
            for place in range(run.first_reader, run.end_reader):
                self._merges_of[place].append((self._partials, first_row, rows))
            self._partials += rows * self._group * self._kv_heads

    def finish(self, place: int, run: Run | None) -> None:
        """The items that finish one sequence's rows, over its private run where that is not split."""
        first_row, end_row = self._plan.row_starts[place : place + 2]
        slots_at, end, start = 0, 0, 0
        if run is not None:
            slots_at = self.put_slots(run)
            if run.tokens > self._tilings.finish.split_tokens:
                self.add_partials(run, slots_at)
            else:
                end, start = run.tokens, run.start_token
        for m_start in range(0, (end_row - first_row) * self._group, self._tilings.finish.block_m):
            self._finish.append((first_row, end_row - first_row, m_start, slots_at, 0, end, start, 0, place))

    def upload(
        self,
        order: np.ndarray[tuple[int], np.dtype[np.int64]],
        positions: np.ndarray[tuple[int], np.dtype[np.int64]],
        device: torch.device,
    ) -> LaunchPlan:
        """The plan, with all int32 arrays in one transfer."""
        index: list[tuple[int, int]] = []
        merges: list[tuple[int, int, int]] = []
        for found in self._merges_of:
            index.append((len(merges), len(found)))
            merges += found
        arrays = [
            np.array([len(self._partial), len(self._finish)]),
            _longest_first(self._partial),
            _longest_first(self._finish),
            np.array(self._slots or [0]),
            positions,
            order,
            np.array(index).reshape(-1, 2),
            np.array(merges).reshape(-1, MERGE_FIELDS),
        ]
        # Each array starts on 16 bytes, so that the kernel may load it in vectors.
        sizes = [-(-array.size // 4) * 4 for array in arrays]
        packed = np.zeros(sum(sizes), np.int32)
        for at, array in zip(np.cumsum([0, *sizes]), arrays):
            packed[at : at + array.size] = array.ravel()
        pieces = [
            piece[: array.size].view(array.shape)
            for piece, array in zip(torch.split(torch.from_numpy(packed).to(device), sizes), arrays)
        ]
        return LaunchPlan(
            self._tilings,
            len(self._partial),
            len(self._finish),
            self._partials,
            *pieces,
        )


def _longest_first(items: list[tuple[int, ...]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    found = np.array(items, np.int64).reshape(-1, ITEM_FIELDS)
    order = np.argsort(found[:, 4] - found[:, 5], kind="stable")
    ordered: np.ndarray[tuple[int, int], np.dtype[np.int64]] = found[order]
    return ordered
