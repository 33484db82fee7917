"""A page of figures in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]
"""Labels and value."""


class Histogram:
    """Counts of observations by upper bound. Not thread-safe.

    Args:
        bounds: upper bounds, ascending; one without end is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0
        """Of all observations."""

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Counts `value`, `times` times. A value that is a bound counts as within it."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, int]]:
        """For each bound, as Prometheus spells it, how many observations are at or below it."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts)))


class Page:
    """Families one after the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help_text: str, samples: Sequence[Sample]) -> None:
        """Adds one family: its help, its type (`gauge` or `counter`) and a line per sample."""
        self._lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        self._lines += [_line(name, labels, value) for labels, value in samples]

    def histogram(
        self, name: str, help_text: str, samples: Sequence[tuple[dict[str, str], Histogram]]
    ) -> None:
        """Adds one family of histograms, each with its labels."""
        self._lines += [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
        for labels, histogram in samples:
            for bound, count in histogram.cumulative():
                self._lines.append(_line(f"{name}_bucket", {**labels, "le": bound}, count))
            self._lines.append(_line(f"{name}_sum", labels, histogram.sum))
            self._lines.append(_line(f"{name}_count", labels, histogram.count))

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines) + "\n"


def _line(name: str, labels: dict[str, str], value: int | float) -> str:
    shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
