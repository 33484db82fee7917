"""Which slots of a pool are free, handed out adjacent where possible.

Adjacent slots make a run one strided view, which the CPU path reads without a gather. Free slots are kept
as extents (start, length): best fit by length, merged with their neighbours when slots are freed.
"""

from __future__ import annotations

from collections.abc import Iterable

from sortedcontainers import SortedList


class SlotAllocator:
    """Free slots of a pool of `slots` slots, all free at first."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._by_length: SortedList[tuple[int, int]] = SortedList()
        self._length_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}
        self._free = 0
        if slots:
            self._add(0, slots)

    @property
    def free(self) -> int:
        """Slots that are free now."""
        return self._free

    def take(self, count: int, after: int | None = None) -> list[int] | None:
        """Takes `count` slots, or returns None (taking nothing) when fewer are free.

        Adjacent to slot `after` if those are free; else the tightest extent that holds them all; else the
        largest pieces there are.
        """
        if count > self._free:
            return None
        taken: list[int] = []
        if after is not None and (length := self._length_at.get(after + 1)) is not None:
            taken += self._cut(after + 1, min(count, length))
        while len(taken) < count:
            missing = count - len(taken)
            place = self._by_length.bisect_left((missing, -1))
            length, start = self._by_length[min(place, len(self._by_length) - 1)]
            taken += self._cut(start, min(missing, length))
        return taken

    def give(self, slots: Iterable[int]) -> None:
        """Frees slots."""
        for slot in slots:
            start, length = slot, 1
            if (before := self._start_before.get(slot)) is not None:
                length += self._remove(before)
                start = before
            if slot + 1 in self._length_at:
                length += self._remove(slot + 1)
            assert start >= 0 and start + length <= self.slots
            self._add(start, length)

    def _cut(self, start: int, count: int) -> range:
        length = self._remove(start)
        if count < length:
            self._add(start + count, length - count)
        return range(start, start + count)

    def _add(self, start: int, length: int) -> None:
        self._by_length.add((length, start))
        self._length_at[start] = length
        self._start_before[start + length] = start
        self._free += length

    def _remove(self, start: int) -> int:
        length = self._length_at.pop(start)
        self._by_length.remove((length, start))
        del self._start_before[start + length]
        self._free -= length
        return length
