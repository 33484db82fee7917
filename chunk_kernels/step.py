"""One step, checked and placed: which sequences take part, and where their new tokens' KV is written.

Each path of `attend` derives its own form of work from a step, once for all layers: items over views
(`torch_items.py`), or the arrays of a kernel launch (`launch_plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.plan import Plan

Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class StepSequence:
    """One sequence's part in a step."""

    slots: Sequence[int]
    """Slots of all its chunks, those that this step writes to included."""
    context_tokens: int
    """Tokens whose KV is in the pool before the step."""
    rows: int
    """New tokens of this step, at positions `context_tokens` onwards."""


class Step:
    """A step over a pool. The caller's rows are the sequences' new tokens, one sequence after the other.

    Raises:
        InputError: no sequence, one without rows, without room for its new tokens, or with a slot outside the pool.
    """

    def __init__(self, sequences: Sequence[StepSequence], pool: ChunkPool) -> None:
        _check(sequences, pool)
        self.sequences = tuple(sequences)
        self.pool = pool
        self.rows = sum(sequence.rows for sequence in sequences)
        places = torch.from_numpy(_places(sequences, pool.shape.chunk_tokens)).to(pool.device)
        self.positions, self.write_at = places[0], places[1]
        """int64 `[rows]`: absolute position of each new token, and slot * chunk_tokens + offset of its place."""
        self._derived: dict[Hashable, object] = {}

    def derived(self, key: Hashable, make: Callable[[Step], Work]) -> Work:
        """The result of `make(self)`, computed once per key."""
        if key not in self._derived:
            self._derived[key] = make(self)
        return self._derived[key]  # type: ignore[return-value]


def prepare_step(sequences: Sequence[StepSequence], pool: ChunkPool) -> Step:
    """A step over `pool`: see `Step`."""
    return Step(sequences, pool)


def caller_order(plan: Plan, sequences: Sequence[StepSequence]) -> list[int]:
    """The caller's row of each row of the plan."""
    starts = [0]
    for sequence in sequences:
        starts.append(starts[-1] + sequence.rows)
    return [row for index in plan.order for row in range(starts[index], starts[index + 1])]


def _check(sequences: Sequence[StepSequence], pool: ChunkPool) -> None:
    chunk = pool.shape.chunk_tokens
    if not sequences:
        raise InputError("a step needs at least one sequence")
    for sequence in sequences:
        needed = -(-(sequence.context_tokens + sequence.rows) // chunk)
        if sequence.rows < 1 or len(sequence.slots) < needed:
            raise InputError(
                f"{sequence.context_tokens} + {sequence.rows} tokens need {needed} chunks and at least one "
                f"row; the sequence has {len(sequence.slots)} slots"
            )
        if min(sequence.slots) < 0 or max(sequence.slots) >= pool.slots:
            raise InputError(f"slots {list(sequence.slots)} reach outside the pool of {pool.slots}")


def _places(sequences: Sequence[StepSequence], chunk: int) -> npt.NDArray[np.int64]:
    """Position of each new token, and the place its KV is written to: `[2, rows]`."""
    found = np.empty((2, sum(sequence.rows for sequence in sequences)), np.int64)
    row = 0
    for sequence in sequences:
        start, rows = sequence.context_tokens, sequence.rows
        if rows == 1:
            place = sequence.slots[start // chunk] * chunk + start % chunk
            found[0, row], found[1, row] = start, place
        else:
            positions = np.arange(start, start + rows)
            found[0, row : row + rows] = positions
            slots = np.asarray(sequence.slots[start // chunk :], np.int64)
            found[1, row : row + rows] = (
                slots[positions // chunk - start // chunk] * chunk + positions % chunk
            )
        row += rows
    return found
