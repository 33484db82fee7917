"""The chance that a path is used again, by age and kind of request, learned from the requests."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PER_OCTAVE = 4
_AGES = [0.0, *(2 ** (i / _PER_OCTAVE) for i in range(95))]
"""Edges of the age bins, in seconds: 0, 1, 1.19, ... four months."""
_BINS = len(_AGES) - 1
_LOWER = _AGES[:-1]
_WIDTHS = [high - low for low, high in pairwise(_AGES)]

_TURNS, _LENGTHS, _GAPS = 4, 8, 8
_KINDS = (_TURNS, _LENGTHS, _GAPS)

_PRIOR_PER_OCTAVE = 0.25
"""Prior: chance of a return in each doubling of the age. So recency counts, as in LRU."""
_CURVE_WEIGHT = 16.0
"""Weight of the previous age's chance, in requests: it counts most at ages that few requests have reached."""
_FACTOR_WEIGHT = 8.0
"""Weight of a factor's prior, in returns."""
_OWN_WEIGHT = 8.0
"""Weight of the product of factors in a kind's own factor, in returns."""
_TURN_PRIOR = 2.0
"""Prior: a path in its k-th turn is this times k as likely to be used again as a new one."""
_FACTOR_PASSES = 2
_LEVELS_PER_OCTAVE = 4
_HIGHEST = 12
"""Levels range from minus this to this: kinds that return an eighth to eight times as often as all do."""
_MOST = 0.999


def kind_of(turn: int, new_chunks: int, gap_seconds: float) -> int:
    """The kind of a request: one number made of its turn, the chunks it added, and the gap before it.

    Args:
        turn: 1 for a new path, k for the k-th request of a conversation.
        new_chunks: chunks of its path that no request before it had.
        gap_seconds: time since the turn before; ignored for a first turn.
    """
    length = min(_LENGTHS, max(1, new_chunks).bit_length()) - 1
    gap = 0
    if turn > 1:
        quarters = int(gap_seconds / 4.0)
        gap = 1 + min(_GAPS - 2, quarters.bit_length() - 1 if quarters else 0)
    return ((min(turn, _TURNS) - 1) * _LENGTHS + length) * _GAPS + gap


class ReturnTimes:
    """Proportional hazards (Cox 1972), by counting: one curve of the chance to return at each age, pooled over all
    requests, times a factor per kind of request. The curve is a Kaplan-Meier estimate on logarithmic ages, so
    requests that have not returned yet count for as long as they have been waited for.

    The worth of keeping a chunk is its Gittins index: returns per second of holding it, for the holding time that
    makes this largest (compare LHD, Beckmann et al., NSDI 2018). Where the chance of a return first rises with age
    and then falls, as when people think before they answer, the worth is low right after a use, then higher, then
    low.

    Args:
        open_requests: most requests waited for at once.
    """

    def __init__(self, open_requests: int) -> None:
        kinds = _TURNS * _LENGTHS * _GAPS
        self._returned = np.zeros((kinds, _BINS))
        self._given_up = np.zeros((kinds, _BINS))
        self._open_kind = np.full(open_requests + 1, -1, np.int64)
        self._open_since = np.zeros(open_requests + 1)
        self._free = list(range(open_requests, -1, -1))
        self._curve = np.zeros(_BINS)
        self._level_of_kind: list[int] = []
        self._worth: dict[int, list[float]] = {}
        self.learn(0.0)

    def open(self, kind: int, now: float) -> int:
        """Starts to wait for the return of a request. Returns the place to pass to `close`."""
        place = self._free.pop()
        self._open_kind[place] = kind
        self._open_since[place] = now
        return place

    def close(self, place: int, now: float, returned: bool) -> float:
        """Ends a wait: the path was used again (`returned`), or is not waited for any more. Returns when it
        began."""
        since = float(self._open_since[place])
        age = bisect_right(_LOWER, now - since) - 1
        (self._returned if returned else self._given_up)[self._open_kind[place], age] += 1
        self._open_kind[place] = -1
        self._free.append(place)
        return since

    def level(self, kind: int) -> int:
        """How likely a kind is to return: 0 is as likely as all requests, 4 more is twice as likely."""
        return self._level_of_kind[kind]

    def worth(self, level: int, age_seconds: float) -> float:
        """Worth, in returns per second, of a leaf of this level that was used `age_seconds` ago."""
        worth = self._worth.get(level)
        if worth is None:
            worth = self._worth[level] = _worth(
                1 - (1 - self._curve) ** (2.0 ** (level / _LEVELS_PER_OCTAVE))
            )
        return worth[bisect_right(_LOWER, age_seconds) - 1]

    def learn(self, now: float) -> None:
        """Updates curve, factors and worth. Takes about a millisecond; the policy calls it every few requests."""
        ended = self._returned + self._given_up
        waited = np.cumsum(ended[:, ::-1], axis=1)[:, ::-1]  # [kinds, ages]: ended waits that reached the age
        live = self._open_kind >= 0
        ages = np.searchsorted(_LOWER, now - self._open_since[live], side="right") - 1
        still = np.zeros_like(ended)
        np.add.at(still, (self._open_kind[live], ages), 1.0)
        # A request that is still waited for counts at the ages it has passed, not at its present one.
        waited += np.cumsum(still[:, ::-1], axis=1)[:, ::-1] - still
        curve, before = [], _PRIOR_PER_OCTAVE / _PER_OCTAVE
        for returned, reached in zip(self._returned.sum(axis=0).tolist(), waited.sum(axis=0).tolist()):
            before = (returned + _CURVE_WEIGHT * before) / (max(reached, returned) + _CURVE_WEIGHT)
            curve.append(before)
        self._curve = np.minimum(curve, _MOST)
        factors = _factors(self._returned.sum(axis=1), waited @ np.asarray(curve))
        levels = np.floor(_LEVELS_PER_OCTAVE * np.log2(factors) + 0.5)
        self._level_of_kind = np.clip(levels, -_HIGHEST, _HIGHEST).astype(int).tolist()
        self._worth.clear()


def _factors(returned: Floats, expected: Floats) -> Floats:
    """How many times as often as the curve expects each kind returns, `[kinds]`.

    One factor each for turn, length and gap, fitted one after the other, times a factor of the kind itself.
    """
    seen, due = returned.reshape(_KINDS), expected.reshape(_KINDS)
    factors = [np.ones(count) for count in _KINDS]
    for _ in range(_FACTOR_PASSES):
        for axis, factor in enumerate(factors):
            others = tuple(other for other in range(len(_KINDS)) if other != axis)
            product = np.einsum("i,j,k->ijk", *factors)
            shape = [-1 if other == axis else 1 for other in range(len(_KINDS))]
            prior = np.ones(_KINDS[axis])
            if axis == 0:
                prior[1:] = _TURN_PRIOR * np.arange(2, _TURNS + 1)
            hits = seen.sum(axis=others)
            chances = (due * product / factor.reshape(shape)).sum(axis=others)
            factors[axis] = prior * (hits + _FACTOR_WEIGHT) / (chances * prior + _FACTOR_WEIGHT)
    product = np.einsum("i,j,k->ijk", *factors)
    own: Floats = product * (seen + _OWN_WEIGHT) / (due * product + _OWN_WEIGHT)
    return own.reshape(-1)


def _worth(chances: Floats) -> list[float]:
    """For each age bin, the largest ratio of expected returns to seconds held, from the chance to return in each
    bin.

    Bins are pooled into groups from the oldest to the youngest, as in isotonic regression: a bin takes in the group
    after it as long as that raises its ratio.
    """
    worth = [0.0] * _BINS
    groups: list[tuple[float, float, float]] = []  # returns, seconds, chance of no return yet
    for age in range(_BINS - 1, -1, -1):
        chance = min(_MOST, float(chances[age]))
        returns, seconds, waiting = chance, (1 - chance / 2) * _WIDTHS[age], 1 - chance
        while groups and groups[-1][0] * seconds > returns * groups[-1][1]:
            more, longer, left = groups.pop()
            returns, seconds, waiting = returns + waiting * more, seconds + waiting * longer, waiting * left
        groups.append((returns, seconds, waiting))
        worth[age] = returns / seconds
    return worth
