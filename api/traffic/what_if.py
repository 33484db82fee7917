"""What would the hit ratio be with other memory? Asked while serving, answered from a sample, per scope."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kvtrie.api.traffic.sampled_paths import Path, SampledPaths
from kvtrie.api.traffic.shards import Shards

PERCENTS = (50, 100, 200, 400)
"""Of the memory that a scope's chunks take now."""
MOST_SCOPES = 64
"""Scopes that are followed, each with a sample of its own; further ones are not."""
_TOGETHER = 32768
"""Blocks that wait to be looked at, because numpy takes many at hardly more cost than one."""

_DRAWN_TOGETHER = 2048
"""They wait no longer than until so many of them are drawn: the rate may fall then, and fewer would be."""

_COUNTER = "what_if"


class WhatIf:
    """LRU's curve of every scope. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves: dict[str, Shards] = {}
        self._samples: dict[str, SampledPaths] = {}
        self._waiting_blocks = 0

    def observe(self, scope: str, path: Path, blocks: int | None = None) -> None:
        """Takes in one request: the chunks that were asked for in path order, or the first `blocks` of them."""
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
        """For each scope that was followed, its hit ratio by percent of the chunks it has now.

        Args:
            chunks: how many chunks each scope has now; scopes that are not among these are left out.
        """
        with self._lock:
            self._settle()
            return {
                scope: {percent: curve.hit_ratio(chunks[scope] * percent / 100) for percent in PERCENTS}
                for scope, curve in sorted(self._curves.items())
                if chunks.get(scope)
            }

    def curve(self, scope: str) -> Shards | None:
        """A scope's curve, with all that was observed; None where it is not followed."""
        with self._lock:
            self._settle()
            return self._curves.get(scope)

    def _settle(self) -> None:
        for scope, sample in self._samples.items():
            curve = self._curves[scope]
            curve.observe(*sample.draw(curve.threshold))
        self._waiting_blocks = 0


def as_counters(ratios: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The answers as counters of a snapshot: `what_if.<percent>.<scope>`."""
    return {
        f"{_COUNTER}.{percent}.{scope}": ratio
        for scope, by_percent in ratios.items()
        for percent, ratio in by_percent.items()
    }


def from_counters(counters: Mapping[str, int | float]) -> dict[str, dict[int, float]]:
    """The answers in a snapshot's counters, undoing `as_counters`."""
    ratios: dict[str, dict[int, float]] = {}
    for name, ratio in counters.items():
        head, _, rest = name.partition(".")
        percent, _, scope = rest.partition(".")
        if head == _COUNTER and percent.isdecimal() and percent.isascii() and len(percent) < 10:
            ratios.setdefault(scope, {})[int(percent)] = float(ratio)
    return ratios


def without_what_if(counters: Mapping[str, int | float]) -> dict[str, int | float]:
    """The counters that count something."""
    return {name: value for name, value in counters.items() if not name.startswith(f"{_COUNTER}.")}
