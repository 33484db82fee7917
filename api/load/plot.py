"""A run as one picture: latencies by the share of requests below, and over the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtrie.api.load.measures import Slo
from kvtrie.api.load.outcome import Outcome
from kvtrie.api.trace.plot_file import figure_written_to

_BLUE, _ORANGE, _GREEN, _GREY, _RED = "#1f5fa8", "#c8501e", "#2b8a4b", "#8a8a8a", "#b3261e"
_WIDE = 4.0
_TICKS = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]


def plot_load(outcomes: Sequence[Outcome], slo: Slo, title: str, path: Path) -> None:
    """Writes a PNG or SVG, by the name's ending.

    Raises:
        InputError: see `plot_file.check_plot`.
        OSError: it cannot be written.
    """
    with figure_written_to(path, (9.6, 6.4)) as figure:
        (ttft, tpot), (over_time, cached) = figure.subplots(2, 2)
        figure.suptitle(title, fontweight="bold")
        whole = [one for one in outcomes if one.failure is None]
        _shares(ttft, [one.ttft for one in whole], slo.ttft_seconds, "time to first token, ms")
        _shares(tpot, [one.tpot for one in whole], slo.tpot_seconds, "time per output token, ms")
        _over_time(over_time, outcomes)
        _cached(cached, whole)


def _shares(axis: Any, values: Sequence[float | None], limit: float, label: str) -> None:
    found = sorted(value * 1e3 for value in values if value is not None)
    if found:
        shares = [100 * (place + 1) / len(found) for place in range(len(found))]
        axis.step([found[0], *found], [0.0, *shares], where="post", color=_BLUE, linewidth=1.4)
        # Powers of ten are too far apart as ticks, and a narrow range has none of them.
        if found[0] > 0 and found[-1] > _WIDE * found[0]:
            axis.set_xscale("log")
            axis.set_xticks(ticks := [value for value in _TICKS if found[0] / 2 <= value <= found[-1] * 2])
            axis.set_xticklabels([f"{value:g}" for value in ticks])
            axis.minorticks_off()
    axis.axvline(limit * 1e3, color=_ORANGE, linewidth=1, linestyle="--", label="SLO")
    axis.set_ylim(0, 102)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.set_xlabel(label)
    axis.set_ylabel("requests at or below")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)


def _over_time(axis: Any, outcomes: Sequence[Outcome]) -> None:
    with_text = [
        (one.due, one.ttft * 1e3) for one in outcomes if one.failure is None and one.ttft is not None
    ]
    if with_text:
        axis.scatter(*zip(*with_text), s=7, color=_BLUE, linewidths=0, label="TTFT")
    lag = [(one.due, (one.sent - one.due) * 1e3) for one in outcomes]
    axis.plot(*zip(*sorted(lag)), color=_GREY, linewidth=0.8, label="sent late by")
    failed = [one.due for one in outcomes if one.failure is not None]
    if failed:
        axis.scatter(failed, [0.0] * len(failed), s=14, marker="x", color=_RED, label="failed")
    axis.set_xlabel("due at, s")
    axis.set_ylabel("ms")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)


def _cached(axis: Any, whole: Sequence[Outcome]) -> None:
    """Share of the prompt tokens so far that were cached, in the order in which requests were due."""
    reported = [one for one in whole if one.prompt_tokens]
    axis.set_xlabel("due at, s")
    axis.set_ylabel("prompt tokens cached so far")
    axis.set_ylim(0, 102)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.grid(alpha=0.25)
    if not any(one.cached_tokens is not None for one in reported):
        axis.text(0.5, 0.5, "not reported by the server", transform=axis.transAxes, ha="center", color=_GREY)
        return
    cached = prompt = 0
    points = []
    for one in sorted(reported, key=lambda one: one.due):
        cached += one.cached_tokens or 0
        prompt += one.prompt_tokens or 0
        points.append((one.due, 100 * cached / prompt))
    axis.plot(*zip(*points), color=_GREEN, linewidth=1.4)
