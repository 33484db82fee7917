"""The plan: which sequences read which slots, as plain integers.

A step's sequences are put in depth-first order of the chunks they read, so that the readers of any chunk
are neighbours. A *run* is a maximal stretch of chunks with the same readers; every run becomes one or a
few work items of attention. The plan sees slots only: two sequences share a chunk where their paths name
the same slot, which is true of whole chunks of the tree and never of a private one.

        slots 0 1 2 | 3 4 | 9          sequences 0, 1, 2 read run [0 1 2]
                    |     | 10         sequences 0, 1 read run [3 4], then each its own
                    | 5 11             sequence 2 reads run [5 11]

`planner.py` makes plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class PlanSequence:
    """One sequence's part in a step."""

    slots: Sequence[int]
    """Slots of its chunks in order; all full but the last."""
    context_tokens: int
    """Tokens whose KV is in those slots already, and is read without a causal mask."""
    rows: int
    """Query rows of this step."""


class Run(NamedTuple):
    """A stretch of chunks with the same readers. A named tuple: a plan makes one per branch, every time."""

    slots: tuple[int, ...]
    start_token: int
    """Absolute position of its first token."""
    tokens: int
    """Tokens to attend to. Fewer than its slots have room for only if its one reader's last chunk is not full."""
    first_reader: int
    end_reader: int
    """Readers are `order[first_reader:end_reader]`."""
    branches: int = 0
    """How many runs continue it, plus readers that end with it."""

    @property
    def readers(self) -> int:
        """How many sequences read it."""
        return self.end_reader - self.first_reader


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's runs."""

    chunk_tokens: int
    order: tuple[int, ...]
    """Indices of the sequences, depth first."""
    row_starts: tuple[int, ...]
    """First row of each ordered sequence, and the total at the end: `[sequences + 1]`."""
    paths: tuple[tuple[int, ...], ...]
    """Slots that each ordered sequence reads."""
    tokens: tuple[int, ...]
    """Tokens that each ordered sequence reads."""
    shared: tuple[Run, ...]
    """Runs with more than one reader, ancestors before descendants."""
    own_from: tuple[int, ...]
    """For each ordered sequence, how many of its chunks are in shared runs; the rest is its private run."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Shared runs, then private ones. Made when asked for: the GPU path needs the shared ones only."""
        return (*self.shared, *self._private())

    def _private(self) -> Iterator[Run]:
        for place, (path, tokens, begin) in enumerate(zip(self.paths, self.tokens, self.own_from)):
            if len(path) > begin:
                start = begin * self.chunk_tokens
                yield Run(path[begin:], start, tokens - start, place, place + 1, 1)
