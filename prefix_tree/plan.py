"""The plan: who reads what, as plain integers.

A step's sequences are put in depth-first order of the chunks they read, so that the readers of any chunk
are neighbours. A *run* is a maximal stretch of chunks with the same readers; every run becomes one or a
few work items of attention. The plan sees slots only: two sequences share a chunk where their paths name
the same slot, which is true of whole chunks of the tree and never of a private one.

        slots 0 1 2 | 3 4 | 9          sequences 0, 1, 2 read run [0 1 2]
                    |     | 10         sequences 0, 1 read run [3 4], then each its own
                    | 5 11             sequence 2 reads run [5 11]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanSequence:
    """What one sequence brings to a step."""

    slots: Sequence[int]
    """Slots of its chunks in order; all full but the last."""
    context_tokens: int
    """Tokens whose KV stands in those slots and is read without a causal mask."""
    rows: int
    """Query rows of this step."""


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of chunks with the same readers."""

    slots: tuple[int, ...]
    start_token: int
    """Absolute position of its first token."""
    tokens: int
    """Tokens to attend to; fewer than the slots hold only where its one reader's last chunk is unfinished."""
    first_reader: int
    end_reader: int
    """Readers are `order[first_reader:end_reader]`."""

    @property
    def readers(self) -> int:
        """How many sequences read it."""
        return self.end_reader - self.first_reader


@dataclass(frozen=True, slots=True)
class Plan:
    """One step's runs, ancestors before descendants."""

    order: tuple[int, ...]
    """Indices of the sequences, depth first."""
    row_starts: tuple[int, ...]
    """First row of each ordered sequence, and the total at the end: `[sequences + 1]`."""
    runs: tuple[Run, ...]


def make_plan(sequences: Sequence[PlanSequence], chunk_tokens: int) -> Plan:
    """Plans one step over any forest of paths. O(unique chunks + sequences * log(sequences))."""
    used = [list(s.slots[: -(-s.context_tokens // chunk_tokens)]) for s in sequences]
    order = sorted(range(len(sequences)), key=used.__getitem__)
    starts = [0]
    for i in order:
        starts.append(starts[-1] + sequences[i].rows)
    runs: list[Run] = []
    # Readers [first, end) agree on their first `depth` chunks. A stack, so that depth has no limit.
    todo = [(0, len(order), 0)]
    while todo:
        first, end, depth = todo.pop()
        if first == end:
            continue
        lowest, highest = used[order[first]], used[order[end - 1]]
        shared = depth
        limit = min(len(lowest), len(highest))
        while shared < limit and lowest[shared] == highest[shared]:
            shared += 1
        if shared > depth:
            start = depth * chunk_tokens
            tokens = min(shared * chunk_tokens, sequences[order[first]].context_tokens) - start
            runs.append(Run(tuple(lowest[depth:shared]), start, tokens, first, end))
        # Sorted, so those that end here come first, then one block per next chunk.
        while first < end and len(used[order[first]]) == shared:
            first += 1
        blocks: list[tuple[int, int, int]] = []
        while first < end:
            block_end = first + 1
            while block_end < end and used[order[block_end]][shared] == used[order[first]][shared]:
                block_end += 1
            blocks.append((first, block_end, shared))
            first = block_end
        todo.extend(reversed(blocks))
    return Plan(tuple(order), tuple(starts), tuple(runs))
