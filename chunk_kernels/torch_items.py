"""The torch path's work: one step's plan as items over views of the pool.

Phase 1, chunk-first: `RunItem`s, one run for all rows of its readers.
Phase 2, sequence-first: `SlabItem`s, the short private runs of decode rows side by side, padded and masked;
and `CausalItem`s, the new tokens of a prefill among themselves.
Every item yields a partial (out, lse); partials of a row merge exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.step import Step, StepSequence, caller_order
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.plan import Plan, PlanSequence, Run
from kvtrie.prefix_tree.plan_check import check_plan
from kvtrie.prefix_tree.planner import make_plan

SLAB_CHUNKS = 8
"""Longest private run that is put into a slab; a longer one gets an item of its own."""

GATHER_EXTENT_CHUNKS = 4
"""A run whose extents are shorter than this on average is gathered; else each extent is an item."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one path in the pool: `tokens` from `offset` on in these slots."""

    slots: tuple[int, ...]
    offset: int
    tokens: int

    @property
    def adjacent(self) -> bool:
        """Whether the slots follow each other, so that the span is a view."""
        return self.slots[-1] - self.slots[0] == len(self.slots) - 1 and all(
            b - a == 1 for a, b in pairwise(self.slots)
        )

    def part(self, first: int, end: int, chunk_tokens: int) -> Span:
        """Its tokens `[first, end)`, in as few of its slots as hold them."""
        skipped, offset = divmod(self.offset + first, chunk_tokens)
        last = -(-(self.offset + end) // chunk_tokens)
        return Span(self.slots[skipped:last], offset, end - first)


@dataclass(frozen=True, slots=True)
class RunItem:
    """Rows `[first_row, end_row)` attend to all of a span."""

    span: Span
    start: int
    """Absolute position of the span's first token."""
    first_row: int
    end_row: int
    fresh: bool
    """No earlier item touched these rows: the partial is stored, not merged."""


@dataclass(frozen=True, slots=True)
class CausalItem:
    """Rows `[first_row, end_row)` attend to their own new tokens, each to those up to itself."""

    span: Span
    start: int
    """Absolute position of the first row, and of its token."""
    first_row: int
    end_row: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class SlabItem:
    """One row per sequence; each attends to its own private run."""

    rows: Tensor
    """int64 `[sequences]`"""
    slots: Tensor
    """int64 `[sequences * chunks]`, for the gather."""
    first_slot: int
    """First slot of the first sequence."""
    chunks: int
    """Slots per sequence, the longest's; shorter runs are padded."""
    stride: int | None
    """Slots between consecutive sequences' first slots, where that is regular: then nothing is gathered."""
    lengths: tuple[int, ...]
    """Tokens of each run; a sequence's row has the position of the last of them."""
    tokens: int
    """Longest run."""
    mask: Tensor | None
    """Additive `[sequences, 1, 1, tokens]`; None where all runs are equally long."""
    fresh: bool


WorkItem = RunItem | CausalItem | SlabItem


@dataclass(frozen=True, slots=True)
class TorchWork:
    """A step's items. Rows are in plan order."""

    rows: int
    row_order: Tensor | None
    """int64 `[rows]`: the caller's row of each plan row; None where the two orders agree."""
    items: tuple[WorkItem, ...]
    order: tuple[int, ...]
    """The step's sequences in plan order."""
    most_tokens: int
    """Tokens of the longest sequence, this step's included: a window at least as wide hides nothing."""


def torch_work(step: Step) -> TorchWork:
    """The step's items for the torch path; made once per step, for all layers."""
    return step.derived(TorchWork, _make)


def _make(step: Step) -> TorchWork:
    sequences, pool = step.sequences, step.pool
    # A decode row reads its own token from the pool like any other; a prefill's square is causal.
    readers = [PlanSequence(s.slots, s.context_tokens + (s.rows == 1), s.rows) for s in sequences]
    plan = make_plan(readers, pool.shape.chunk_tokens)
    if checks_wanted():
        check_plan(plan, readers, pool.shape.chunk_tokens)
    order = caller_order(plan, sequences)
    in_order = all(a == b for a, b in enumerate(order))
    return TorchWork(
        rows=step.rows,
        row_order=None if in_order else torch.tensor(order, dtype=torch.int64, device=pool.device),
        items=tuple(_items(plan, sequences, pool)),
        order=tuple(plan.order),
        most_tokens=max(s.context_tokens + s.rows for s in sequences),
    )


def _items(plan: Plan, sequences: Sequence[StepSequence], pool: ChunkPool) -> list[WorkItem]:
    chunk = pool.shape.chunk_tokens
    touched = [False] * len(sequences)
    items: list[WorkItem] = []
    private: list[Run] = []
    # 1. Runs in plan order; short private runs of decoding rows are left for one slab.
    for run in plan.runs:
        only = sequences[plan.order[run.first_reader]]
        if run.readers == 1 and only.rows == 1 and len(run.slots) <= SLAB_CHUNKS:
            private.append(run)
            continue
        rows = plan.row_starts[run.first_reader], plan.row_starts[run.end_reader]
        start = run.start_token
        for span in _spans(run, chunk):
            readers = range(run.first_reader, run.end_reader)
            items.append(RunItem(span, start, *rows, fresh=not any(touched[r] for r in readers)))
            start += span.tokens
            for reader in readers:
                touched[reader] = True
    # 2. The new tokens of each prefill, among themselves.
    for place, index in enumerate(plan.order):
        sequence = sequences[index]
        if sequence.rows > 1:
            first = sequence.context_tokens // chunk
            last = -(-(sequence.context_tokens + sequence.rows) // chunk)
            span = Span(tuple(sequence.slots[first:last]), sequence.context_tokens % chunk, sequence.rows)
            rows = plan.row_starts[place], plan.row_starts[place + 1]
            items.append(CausalItem(span, sequence.context_tokens, *rows, fresh=not touched[place]))
    # 3. One slab of the private runs whose rows have no item yet, and one of the others.
    for fresh in (True, False):
        runs = [run for run in private if touched[run.first_reader] is not fresh]
        if runs:
            items.append(_slab(runs, plan, pool, fresh))
    return items


def _spans(run: Run, chunk: int) -> list[Span]:
    """The run as adjacent stretches, or as one to gather where those would be too short."""
    starts = [0] + [i for i in range(1, len(run.slots)) if run.slots[i] != run.slots[i - 1] + 1]
    if len(starts) > 1 and len(run.slots) < len(starts) * GATHER_EXTENT_CHUNKS:
        return [Span(run.slots, 0, run.tokens)]
    spans = []
    for start, end in zip(starts, [*starts[1:], len(run.slots)]):
        tokens = min(end * chunk, run.tokens) - start * chunk
        spans.append(Span(run.slots[start:end], 0, tokens))
    return spans


def _slab(runs: Sequence[Run], plan: Plan, pool: ChunkPool, fresh: bool) -> SlabItem:
    # 1. Is the slab a strided view, or must its slots be gathered?
    device = pool.device
    chunks = max(len(run.slots) for run in runs)
    lengths = tuple(run.tokens for run in runs)
    firsts = [run.slots[0] for run in runs]
    strides = {b - a for a, b in pairwise(firsts)} or {chunks}
    regular = (
        len(strides) == 1
        and min(strides) >= 1
        and firsts[-1] + chunks <= pool.slots
        # Equally long, too: a shorter one's padding would be a neighbour's slot, and its NaN would get out.
        and all(len(run.slots) == chunks and Span(run.slots, 0, 1).adjacent for run in runs)
    )
    # 2. Slots and mask, padded to the longest run.
    # Padding repeats a run's own last slot: masked, and never another sequence's chunk.
    padded = [run.slots + (run.slots[-1],) * (chunks - len(run.slots)) for run in runs]
    return SlabItem(
        rows=torch.tensor([plan.row_starts[run.first_reader] for run in runs], device=device),
        slots=torch.tensor([slot for slots in padded for slot in slots], device=device),
        first_slot=firsts[0],
        chunks=chunks,
        stride=strides.pop() if regular else None,
        lengths=lengths,
        tokens=max(lengths),
        mask=slab_mask(lengths, None, pool),
        fresh=fresh,
    )


def slab_mask(lengths: Sequence[int], window: int | None, pool: ChunkPool) -> Tensor | None:
    """Additive `[sequences, 1, 1, tokens]`, in the pool's dtype, that hides padding and what a window has left.

    None where it would hide nothing. A row's own token is always seen.
    """
    tokens = max(lengths)
    if min(lengths) == tokens and (window is None or window >= tokens):
        return None
    ends = torch.tensor(lengths, device=pool.device)[:, None]
    place = torch.arange(tokens, device=pool.device)[None]
    hidden = place >= ends
    if window is not None:
        hidden |= place < ends - window
    mask = torch.zeros(hidden.shape, dtype=pool.dtype, device=pool.device).masked_fill_(hidden, -torch.inf)
    return mask[:, None, None]
