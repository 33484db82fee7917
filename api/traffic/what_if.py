"""The hit ratio that each scope would have with more or less memory, estimated from a sample of its requests."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kvtrie.api.traffic.sampled_paths import Path, SampledPaths
from kvtrie.api.traffic.shards import Shards

PERCENTS = (50, 100, 200, 400)
"""Memory sizes to estimate for, in percent of what a scope's chunks take now."""
MOST_SCOPES = 64
"""Most scopes that are sampled; further ones have no estimate."""
_TOGETHER = 32768
"""Blocks (chunk uses) that are collected before they are sampled, because numpy takes many at hardly more cost than
one."""

_DRAWN_TOGETHER = 2048
"""Flush earlier once about this many of the blocks are expected in the sample: the sampling rate may drop after the
flush, and then fewer are drawn."""

_COUNTER = "what_if"


class WhatIf:
    """The hit-ratio curve of LRU, for each scope. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves: dict[str, Shards] = {}
        self._samples: dict[str, SampledPaths] = {}
        self._waiting_blocks = 0

    def observe(self, scope: str, path: Path, blocks: int | None = None) -> None:
        """Adds one request: its chunks in path order, or the first `blocks` of them."""
        blocks = len(path) if blocks is None else blocks
        if not blocks:
            return
        with self._lock:
            sample = self._samples.get(scope)
            if sample is None:
                if len(self._samples) >= MOST_SCOPES:
                    return
                self._curves[scope] = Shards()
                sample = self._samples[scope] = SampledPaths()
            sample.add(path, blocks)
            self._waiting_blocks += blocks
            if self._waiting_blocks >= min(_TOGETHER, _DRAWN_TOGETHER / self._curves[scope].rate):
                self._settle()

    def hit_ratios(self, chunks: Mapping[str, int]) -> dict[str, dict[int, float]]:
        """For each sampled scope, its estimated hit ratio by percent of the chunks it has now.

        Args:
            chunks: how many chunks each scope has now; other scopes are left out.
        """
        with self._lock:
            self._settle()
            return {
                scope: {percent: curve.hit_ratio(chunks[scope] * percent / 100) for percent in PERCENTS}
                for scope, curve in sorted(self._curves.items())
                if chunks.get(scope)
            }

    def curve(self, scope: str) -> Shards | None:
        """A scope's curve, with all requests so far; None if the scope is not sampled."""
        with self._lock:
            self._settle()
            return self._curves.get(scope)

    def _settle(self) -> None:
        for scope, sample in self._samples.items():
            curve = self._curves[scope]
            curve.observe(*sample.draw(curve.threshold))
        self._waiting_blocks = 0


def as_counters(ratios: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Estimates as counters of a snapshot: `what_if.<percent>.<scope>`."""
    return {
        f"{_COUNTER}.{percent}.{scope}": ratio
        for scope, by_percent in ratios.items()
        for percent, ratio in by_percent.items()
    }


def from_counters(counters: Mapping[str, int | float]) -> dict[str, dict[int, float]]:
    """Estimates among a snapshot's counters: undoes `as_counters`."""
    ratios: dict[str, dict[int, float]] = {}
    for name, ratio in counters.items():
        head, _, rest = name.partition(".")
        percent, _, scope = rest.partition(".")
        if head == _COUNTER and percent.isdecimal() and percent.isascii() and len(percent) < 10:
            ratios.setdefault(scope, {})[int(percent)] = float(ratio)
    return ratios


def without_what_if(counters: Mapping[str, int | float]) -> dict[str, int | float]:
    """The counters without the estimates of `as_counters`."""
    return {name: value for name, value in counters.items() if not name.startswith(f"{_COUNTER}.")}
