"""Timing, and what a figure must carry: machine, commit, versions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import TypeVar

from kvtrie.api.inspection.provenance import provenance

T = TypeVar("T")

__all__ = ["median_seconds", "provenance", "seconds"]


def seconds(call: Callable[[], T]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[T], object], inputs: Iterable[T]) -> float:
    """Median time of `call` over inputs; each input is used once."""
    times = []
    for value in inputs:
        start = time.perf_counter()
        call(value)
        times.append(time.perf_counter() - start)
    return median(times)
