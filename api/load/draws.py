"""Random choices that are the same in every Python.

Of `random.Random`'s methods only `random()` is promised to return the same numbers in every version, so the
choices here are made of it alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Random choices of one seed. `purpose` keeps the draws of one purpose apart from those of another."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._random = random.Random(f"{purpose} {seed}").random

    def below(self, count: int) -> int:
        """A whole number in 0..count-1, all equally likely."""
        return int(self._random() * count)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        found = list(items)
        for last in range(len(found) - 1, 0, -1):
            other = self.below(last + 1)
            found[last], found[other] = found[other], found[last]
        return found

    def rounds(self, items: Sequence[T]) -> Iterator[T]:
        """The items without end: none comes twice before all have come once; each round in another order."""
        while True:
            yield from self.shuffled(items)
