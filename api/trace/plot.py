"""A simulation as one picture: hit ratio over capacity, times between uses, ages of evicted blocks."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from kvtrie.api.trace.plot_file import figure_written_to
from kvtrie.api.trace.simulation import Simulation, TraceFacts

_COLOURS = ("#1f5fa8", "#c8501e", "#2b8a4b", "#7d4bb3", "#b38a00", "#c2357f", "#4a4a4a", "#1296a4", "#8c5a2b")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_GREY = "#8a8a8a"
_TIMES = ((1, "1 s"), (60, "1 min"), (3600, "1 h"), (86400, "1 d"))


def plot_simulation(simulation: Simulation, path: Path) -> None:
    """Writes a PNG or SVG, by the name's ending: a column per trace.

    Raises:
        InputError: see `plot_file.check_plot`.
        OSError: it cannot be written.
    """
    columns = len(simulation.facts)
    with figure_written_to(path, (max(6.4, 4.6 * columns), 9.6)) as figure:
        axes = figure.subplots(3, columns, squeeze=False)
        for column, facts in enumerate(simulation.facts):
            _hit_ratios(axes[0][column], simulation, facts, is_first=column == 0)
            _reuse(axes[1][column], facts, is_first=column == 0)
            _ages(axes[2][column], simulation, facts, is_first=column == 0)


def _hit_ratios(axis: Any, simulation: Simulation, facts: TraceFacts, *, is_first: bool) -> None:
    rows = [row for row in simulation.rows if row.trace == facts.trace and row.tenant is None]
    unique = facts.unique_blocks
    # 1. The curve of LRU and the limit.
    axis.plot(
        [100 * blocks / unique for blocks, _ in facts.lru_curve],
        [100 * ratio for _, ratio in facts.lru_curve],
        color=_GREY, linewidth=1, label="lru, every capacity",
    )  # fmt: skip
    axis.axhline(100 * facts.infinite_hit_ratio, color=_GREY, linewidth=1, linestyle=":", label="no limit")
    # 2. A line for each policy.
    for name, colour, mark in zip(dict.fromkeys(row.policy for row in rows), cycle(_COLOURS), cycle(_MARKS)):
        points = sorted(
            (100 * r.capacity_fraction, 100 * r.hit_ratio_blocks) for r in rows if r.policy == name
        )
        axis.plot(*zip(*points), color=colour, marker=mark, markersize=4, linewidth=1.4, label=name)
    # 3. Axes.
    smallest = min([0.5, *(50 * row.capacity_fraction for row in rows)])
    axis.set_xscale("log")
    axis.set_xlim(smallest, 120)
    ticks = [tick for tick in (0.01, 0.1, 1, 2, 5, 10, 25, 50, 100) if tick >= smallest]
    axis.set_xticks(ticks, [f"{tick:g}%" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, min(100, 100 * facts.infinite_hit_ratio * 1.12 + 1))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.set_title(facts.trace, fontweight="bold")
    axis.set_xlabel(f"capacity (100% is {unique:,} blocks)")
    axis.grid(alpha=0.25)
    if is_first:
        axis.set_ylabel("blocks served")
    axis.legend(frameon=False, fontsize=8)


def _reuse(axis: Any, facts: TraceFacts, *, is_first: bool) -> None:
    counts = facts.reuse_distance_blocks
    last = max((place for place, count in enumerate(counts) if count), default=0)
    shares = [100 * count / facts.block_uses for count in counts[: last + 1]]
    axis.bar(range(last + 1), shares, color=_COLOURS[0], width=0.85)
    labels = [_power(place) for place in range(last + 1)]
    step = max(1, (last + 1) // 8)
    axis.set_xticks(range(0, last + 1, step), labels[::step])
    axis.set_title(f"{facts.first_uses / facts.block_uses:.0%} are first uses", fontsize=9, color=_GREY)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.set_xlabel("blocks used since a block's last use (from, to twice that)")
    if is_first:
        axis.set_ylabel("block uses")


def _ages(axis: Any, simulation: Simulation, facts: TraceFacts, *, is_first: bool) -> None:
    mine = [one for one in simulation.replayed if one.trace == facts.trace and one.evictions]
    mine = [one for one in mine if one.policy == mine[0].policy]
    # 1. For each capacity, the cumulated share of evictions by time since last use.
    for one, colour in zip(mine, cycle(_COLOURS)):
        counts = one.idle_seconds
        last = max((place for place, count in enumerate(counts) if count), default=0)
        edges = [2.0**place for place in range(-1, last + 1)]
        shares = [100 * sum(counts[: place + 1]) / one.evictions for place in range(last + 1)]
        axis.plot(edges, [0.0, *shares], color=colour, linewidth=1.4, label=one.capacity)
    # 2. Axes.
    axis.set_xlabel(f"time since last use when evicted ({mine[0].policy})" if mine else "nothing was evicted")
    if mine:
        axis.set_xscale("log")
        axis.set_xticks([seconds for seconds, _ in _TIMES], [label for _, label in _TIMES])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8, title="capacity", loc="lower right")
    axis.set_ylim(0, 103)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.grid(alpha=0.25)
    if is_first:
        axis.set_ylabel("evictions so far")


def _power(place: int) -> str:
    """The lower end of bin `place`, short."""
    value: float = 0 if place == 0 else 2 ** (place - 1)
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.0f}T"
