"""Ages of blocks at their eviction: since they were stored, and since they were last used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvtrie.prefix_tree import Evicted

BINS = 32
"""Bin 0 is under a second, bin i is 2^(i-1) to 2^i seconds."""
_TOGETHER = 1 << 16


class EvictionAges:
    """Two histograms over powers of two seconds."""

    def __init__(self) -> None:
        self.lifetimes = np.zeros(BINS, np.int64)
        """Evicted blocks by seconds from storing to eviction."""
        self.idle = np.zeros(BINS, np.int64)
        """Evicted blocks by seconds from last use to eviction."""
        self._lifetimes: list[float] = []
        self._idle: list[float] = []

    def add(self, evicted: Sequence[Evicted], now: float) -> None:
        """Counts blocks that were evicted at `now` (seconds)."""
        self._lifetimes += [now - gone.node.created_seconds for gone in evicted]
        self._idle += [now - gone.node.used_seconds for gone in evicted]
        if len(self._idle) >= _TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Brings the histograms up to date."""
        self.lifetimes += log2_histogram(self._lifetimes)
        self.idle += log2_histogram(self._idle)
        self._lifetimes, self._idle = [], []

    @property
    def evictions(self) -> int:
        """Blocks evicted."""
        return int(self.idle.sum()) + len(self._idle)


def log2_histogram(values: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Counts per bin: below 1, then 1 to 2, 2 to 4, ...; the last bin takes all that is larger."""
    if not len(values):
        return np.zeros(BINS, np.int64)
    exponents = np.frexp(np.maximum(values, 0.5))[1]
    return np.bincount(np.clip(exponents, 0, BINS - 1), minlength=BINS).astype(np.int64)
