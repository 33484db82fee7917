"""Blocks of tokens that two sequences have in common, in the order of both.

`difflib` takes time that is quadratic in how often a token occurs: minutes for two prompts of 100,000 tokens in
which a line end occurs everywhere. Here windows of one length are compared by their hashes:

1. Windows that occur once in each sequence are anchors. The longest chain of them that is in the same order in both
   is kept (Bram Cohen's patience diff), and each anchor grows as far as both are equal. O(n log n).
2. Between anchors it is done again. Where there are none, as in text that repeats itself, the longest common block
   is found by bisection of its length, and both sides of it are searched (Ratcliff and Obershelp's gestalt
   matching). O(n log^2 n) a block, and no more than `_MOST_SEARCHED` tokens in all.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 1 << 17
"""Longest beginning of a sequence that is compared."""
_MOST_SEARCHED = 1 << 21
"""Tokens searched in all: a few seconds. What has not been searched by then counts as different."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64."""


@dataclass(frozen=True, slots=True)
class Block:
    """Equal tokens: `one[start_one : start_one + tokens] == other[start_other : start_other + tokens]`."""

    start_one: int
    start_other: int
    tokens: int


def common_blocks(one: Sequence[int], other: Sequence[int], least_tokens: int) -> list[Block]:
    """Common blocks of at least `least_tokens` tokens, from the first; no two overlap or cross.

    Only the first `MOST_TOKENS` tokens of each are compared.
    """
    left, right = (np.asarray(tokens[:MOST_TOKENS], dtype=np.int64) for tokens in (one, other))
    found: list[Block] = []
    regions: list[tuple[int, int, int, int, int]] = []

    def enqueue(begin_one: int, end_one: int, begin_other: int, end_other: int) -> None:
        shorter = min(end_one - begin_one, end_other - begin_other)
        if shorter >= least_tokens:
            # The largest first: they hold most of what is left to be found.
            heapq.heappush(regions, (-shorter, begin_one, end_one, begin_other, end_other))

    enqueue(0, len(left), 0, len(right))
    searched = 0
    while regions and searched < _MOST_SEARCHED:
        _, begin_one, end_one, begin_other, end_other = heapq.heappop(regions)
        searched += end_one - begin_one + end_other - begin_other
        inside = _blocks(left[begin_one:end_one], right[begin_other:end_other], least_tokens)
        past_one, past_other = begin_one, begin_other
        for block in inside:
            start_one, start_other = begin_one + block.start_one, begin_other + block.start_other
            found.append(Block(start_one, start_other, block.tokens))
            enqueue(past_one, start_one, past_other, start_other)
            past_one, past_other = start_one + block.tokens, start_other + block.tokens
        if inside:
            enqueue(past_one, end_one, past_other, end_other)
    return sorted(found, key=lambda block: block.start_one)


def _blocks(one: NDArray[np.int64], other: NDArray[np.int64], least_tokens: int) -> list[Block]:
    """Some common blocks, from the first; none if there is no block of `least_tokens`."""
    hashes = _WindowHashes(one), _WindowHashes(other)
    if anchored := _anchored(one, other, hashes, least_tokens):
        return anchored
    longest = _longest(one, other, hashes, least_tokens)
    return [] if longest is None else [longest]


def _anchored(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    hashes: tuple[_WindowHashes, _WindowHashes],
    length: int,
) -> list[Block]:
    """Blocks around windows that occur once in each sequence."""
    # 1. Such windows, as pairs of places, by the place in `one`.
    once = [_unique(mine.of(length)) for mine in hashes]
    _, left, right = np.intersect1d(once[0][0], once[1][0], assume_unique=True, return_indices=True)
    places = once[0][1][left], once[1][1][right]
    order = np.argsort(places[0])
    # 2. The longest chain whose places rise in both.
    chain = _longest_rise(places[1][order].tolist())
    anchors = zip(places[0][order][chain].tolist(), places[1][order][chain].tolist())
    # 3. Each anchor beyond the block before it becomes a block, grown to both sides.
    blocks: list[Block] = []
    end_one = end_other = 0
    for start_one, start_other in anchors:
        if start_one < end_one or start_other < end_other:
            continue
        # A hash is a hint, the tokens are the truth.
        if not np.array_equal(one[start_one : start_one + length], other[start_other : start_other + length]):
            continue
        before = _equal_tokens(one[end_one:start_one][::-1], other[end_other:start_other][::-1])
        after = _equal_tokens(one[start_one:], other[start_other:])
        blocks.append(Block(start_one - before, start_other - before, before + after))
        end_one, end_other = start_one + after, start_other + after
    return blocks


def _unique(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes that occur once, and their places."""
    values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    return values[counts == 1], first[counts == 1].astype(np.int64)


def _longest_rise(values: Sequence[int]) -> list[int]:
    """Places of a longest rising subsequence: patience sorting, with links to the pile on the left."""
    tops: list[int] = []
    piles: list[int] = []
    above: list[int] = []
    for place, value in enumerate(values):
        pile = bisect_left(tops, value)
        above.append(piles[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(value)
            piles.append(place)
        else:
            tops[pile], piles[pile] = value, place
    rise = []
    place = piles[-1] if piles else -1
    while place >= 0:
        rise.append(place)
        place = above[place]
    return rise[::-1]


def _equal_tokens(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many leading tokens are equal."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _longest(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    hashes: tuple[_WindowHashes, _WindowHashes],
    least_tokens: int,
) -> Block | None:
    """The longest common block, the first in `one` among several; None if it is shorter than `least_tokens`."""
    best = None
    # Where a block of n tokens is common, so is one of n - 1.
    low, high = least_tokens, min(len(one), len(other))
    while low <= high:
        length = (low + high) // 2
        block = _common_window(one, other, hashes, length)
        if block is None:
            high = length - 1
        else:
            best, low = block, length + 1
    return best


def _common_window(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    hashes: tuple[_WindowHashes, _WindowHashes],
    length: int,
) -> Block | None:
    left, right = (mine.of(length) for mine in hashes)
    places = np.flatnonzero(np.isin(left, right))
    if not len(places):
        return None
    start_one = int(places[0])
    # Of several alike, such as rows of a table, the one at the most similar place: most is left on both sides.
    alike = np.flatnonzero(right == left[start_one])
    start_other = int(alike[np.argmin(np.abs(alike - start_one))])
    # A hash is a hint, the tokens are the truth.
    if not np.array_equal(one[start_one : start_one + length], other[start_other : start_other + length]):
        return None
    return Block(start_one, start_other, length)


class _WindowHashes:
    """Hashes of all windows of a sequence, of any one length: polynomials in `_BASE` modulo 2^64."""

    def __init__(self, tokens: NDArray[np.int64]) -> None:
        count = len(tokens)
        with np.errstate(over="ignore"):
            powers = np.cumprod(np.full(count, _BASE, np.uint64), dtype=np.uint64)
            inverse = np.full(count, pow(_BASE, -1, 1 << 64), np.uint64)
            self._inverse = np.cumprod(inverse, dtype=np.uint64)
            # Tokens are small and neighbours of each other: they are spread over 64 bits first.
            spread = _mixed(tokens.astype(np.uint64))
            self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(spread * powers, dtype=np.uint64)])

    def of(self, length: int) -> NDArray[np.uint64]:
        """Hashes of the windows of `length` tokens, by their first token."""
        sums = self._sums[length:] - self._sums[:-length]
        return np.asarray(sums * self._inverse[: len(sums)], dtype=np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = (values + np.uint64(_BASE)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)), dtype=np.uint64)
