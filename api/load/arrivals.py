"""When requests are due: offsets in seconds from the start of a run, the same ones for the same seed."""

from __future__ import annotations

import math
import random
from pathlib import Path

from kvtrie.api.trace.arrival_times import arrival_times
from kvtrie.prefix_tree.errors import InputError


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Arrivals of a Poisson process of `rate` per second: gaps are independent and exponential.

    Raises:
        InputError: the rate is not a number above 0.
    """
    _check_rate(rate)
    # Of the generator's methods only `random()` is promised to return the same numbers in every Python.
    draws = random.Random(seed)
    offsets, now = [], 0.0
    for _ in range(count):
        # 1 - u is in (0, 1]: its logarithm is finite.
        now -= math.log(1.0 - draws.random()) / rate
        offsets.append(now)
    return offsets


def constant(rate: float, count: int) -> list[float]:
    """Arrivals every 1 / `rate` seconds, the first one at 0.

    Raises:
        InputError: the rate is not a number above 0.
    """
    _check_rate(rate)
    return [place / rate for place in range(count)]


def traced(path: Path, count: int, rate: float | None = None) -> list[float]:
    """The first `count` arrivals of a trace, from the first one.

    Args:
        rate: stretches or shortens all gaps by one factor, so that there are this many arrivals per second on
            average: bursts stay bursts. None keeps the trace's own times.

    Raises:
        InputError: see `arrival_times`; the rate is not a number above 0, or all arrivals are at one time.
    """
    offsets = arrival_times(path, count)
    if rate is None:
        return offsets
    _check_rate(rate)
    if offsets[-1] == 0:
        raise InputError(
            f"trace {path}: its first {count} requests arrive at one time, so no rate can be set"
        )
    factor = (count - 1) / rate / offsets[-1]
    return [offset * factor for offset in offsets]


def _check_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"the rate must be a number of requests per second above 0, got {rate:g}")
