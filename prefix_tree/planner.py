"""Making plans: for one step, or kept up to date while sequences join, leave and grow.

Sequences are sorted by the slots they read; for each, the planner keeps how many chunks it shares with the one
before. Runs follow from those two lists in one pass, as the inner nodes of a suffix tree follow from a suffix
array and its common prefixes (Abouelhoda et al., Journal of Discrete Algorithms 2, 2004, algorithm 4.4).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from sys import byteorder

from kvtrie.prefix_tree.plan import Plan, PlanSequence, Run

SLOT_BYTES = array("i").itemsize


class Planner:
    """The sequences of a batch, by name, in plan order."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._keys: list[tuple[bytes, int]] = []
        """(slots as big-endian bytes, name), sorted: bytes compare as their slots do, at the speed of memcmp."""
        self._common: list[int] = []
        """Chunks that each shares with the one before it; 0 for the first."""
        self._slots: dict[int, tuple[int, ...]] = {}
        self._tokens: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def join_all(self, sequences: Iterable[tuple[int, Sequence[int], int]]) -> None:
        """As `join`, for many at once: one sort."""
        for name, slots, tokens in sequences:
            self._slots[name] = path = tuple(slots)
            self._tokens[name] = tokens
            self._keys.append((_key(path), name))
        keys = self._keys
        keys.sort()
        self._common = [0] * min(1, len(keys))
        self._common += [_common_chunks(keys[i - 1][0], keys[i][0]) for i in range(1, len(keys))]

    def join(self, name: int, slots: Sequence[int], tokens: int) -> None:
        """Takes in a sequence that reads `tokens` tokens from `slots`. O(log sequences) comparisons."""
        self._slots[name] = path = tuple(slots)
        self._tokens[name] = tokens
        entry = (_key(path), name)
        keys, common = self._keys, self._common
        at = bisect_left(keys, entry)
        keys.insert(at, entry)
        common.insert(at, _common_chunks(keys[at - 1][0], entry[0]) if at else 0)
        if at + 1 < len(keys):
            common[at + 1] = _common_chunks(entry[0], keys[at + 1][0])

    def leave(self, name: int) -> None:
        """Lets a sequence go. What its neighbours share is the least of what each shared with it."""
        at = bisect_left(self._keys, (_key(self._slots.pop(name)), name))
        del self._tokens[name]
        del self._keys[at]
        shared = self._common.pop(at)
        if at < len(self._common):
            self._common[at] = min(shared, self._common[at])

    def move(self, name: int, slots: Sequence[int], tokens: int) -> None:
        """Gives a sequence other slots: it has grown, or another's chunk took the place of its own."""
        self.leave(name)
        self.join(name, slots, tokens)

    def plan(self, rows: Sequence[int] | None = None) -> Plan:
        """The plan of the present sequences. O(sequences + runs).

        Args:
            rows: `rows[name]` query rows each; one each if left out.
        """
        order = tuple([name for _, name in self._keys])
        if rows is None:
            starts = tuple(range(len(order) + 1))
        else:
            starts = tuple(accumulate([rows[name] for name in order], initial=0))
        slots, tokens = self._slots, self._tokens
        paths = tuple([slots[name] for name in order])
        after = [*self._common[1:], 0]
        return Plan(
            self._chunk_tokens,
            order,
            starts,
            paths,
            tuple([tokens[name] for name in order]),
            tuple(self._shared(paths, after)),
            # A sequence's own chunks begin after all chunks it shares with either neighbour.
            tuple(map(max, self._common, after)),
        )

    def _shared(self, paths: Sequence[tuple[int, ...]], after: Sequence[int]) -> list[Run]:
        """Every shared run once, when the sweep has passed its last reader; then ancestors first.

        `after[i]`: chunks that the i-th shares with the next.
        """
        runs: list[Run] = []
        # Runs the sweep is inside of: [first chunk, end chunk, first reader, ways on so far].
        opened: list[list[int]] = []
        depth, chunk_tokens = 0, self._chunk_tokens
        for reader, shared in enumerate(after):
            if depth == shared:
                if opened:
                    opened[-1][3] += 1
                continue
            first, ways = reader, 1
            # Runs that the next reader does not read end here, as a whole or from some chunk on.
            while opened and depth > shared:
                begin, end, first, so_far = opened.pop()
                ways += so_far
                cut = max(begin, shared)
                start = cut * chunk_tokens
                slots = paths[reader][cut:end]
                runs.append(Run(slots, start, (end - cut) * chunk_tokens, first, reader + 1, ways))
                ways, depth = 1, cut
                if cut > begin:
                    opened.append([begin, cut, first, 0])
                    break
            if shared > depth:
                opened.append([depth, shared, first, ways])
                depth = shared
            elif opened:
                opened[-1][3] += ways
        runs.reverse()
        return runs


def make_plan(sequences: Sequence[PlanSequence], chunk_tokens: int) -> Plan:
    """Plans one step over any forest of paths. O(unique chunks + sequences * log(sequences))."""
    planner = Planner(chunk_tokens)
    planner.join_all(
        (i, s.slots[: -(-s.context_tokens // chunk_tokens)], s.context_tokens)
        for i, s in enumerate(sequences)
    )
    return planner.plan([s.rows for s in sequences])


def _key(slots: tuple[int, ...]) -> bytes:
    packed = array("i", slots)
    if byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def _common_chunks(a: bytes, b: bytes) -> int:
    """How many leading slots two keys share, by halving."""
    low, high = 0, min(len(a), len(b)) // SLOT_BYTES
    if a[: high * SLOT_BYTES] == b[: high * SLOT_BYTES]:
        return high
    while low < high:
        middle = (low + high) // 2
        place, end = low * SLOT_BYTES, (middle + 1) * SLOT_BYTES
        if a[place:end] == b[place:end]:
            low = middle + 1
        else:
            high = middle
    return low
