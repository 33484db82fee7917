"""Draws `docs/eviction-*.svg` from the JSON of `python -m bench.policies`. Needs matplotlib.

python -m bench.eviction_plots bench/results/policies-DATE-COMMIT.json [--out docs] [--format png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
STRONG = {"learned": "#c2103f", "lru": "#1f5fa8", "lfu": "#d98324", "opt": "#4a4a4a"}
"""Our own policy, and those that everything is compared with."""
OTHERS = ("#2b8a4b", "#7d4bb3", "#b38a00", "#c2357f", "#1296a4", "#8c5a2b", "#93b5d8", "#d8a993", "#a5c78f")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d")


def main() -> None:
    """Entry point of `python -m bench.eviction_plots`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, default=DOCS)
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    args = parser.parse_args()
    found = json.loads(args.results.read_text(encoding="utf-8"))
    style: Any = {
        "svg.hashsalt": "kvtrie",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        for name, figure in (
            ("hit-ratios", hit_ratios(found["rows"])),
            ("closing", closing(found["summary"])),
            ("flood", flood(found["flood"])),
        ):
            path = args.out / f"eviction-{name}.{args.format}"
            figure.savefig(path, dpi=120, metadata={"Date": None} if args.format == "svg" else {})
            print(path)


def hit_ratios(rows: list[Mapping[str, Any]]) -> Figure:
    """A panel per trace: hit ratio over capacity, a line per policy."""
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    figure = Figure(figsize=(9.6, 3.6 * -(-len(traces) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(traces) // 2), 2, squeeze=False).ravel()
    look = _look(rows)
    for axis, trace in zip(axes, traces):
        mine = [row for row in rows if row["trace"] == trace]
        for policy, (colour, mark) in look.items():
            points = sorted(
                (r["capacity_percent"], 100 * r["hit_ratio_blocks"]) for r in mine if r["policy"] == policy
            )
            if points:
                width, order = (1.8, 3) if policy in STRONG else (1.0, 2)
                axis.plot(
                    *zip(*points),
                    color=colour,
                    marker=mark,
                    markersize=3.5,
                    linewidth=width,
                    zorder=order,
                    label=policy,
                )
        ticks = sorted({row["capacity_percent"] for row in mine})
        axis.set_xscale("log")
        # On a logarithmic axis the labels in between would run into each other.
        named = [tick for tick in ticks if tick in (1, 2, 5, 10, 25, 50)]
        axis.set_xticks(named, [f"{tick:g}%" for tick in named])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axis.set_title(trace.removesuffix("_dev"), fontweight="bold")
        axis.set_xlabel("capacity, of the blocks the trace touches")
        axis.set_ylabel("blocks served")
        axis.grid(alpha=0.25)
    for axis in axes[len(traces) :]:
        axis.axis("off")
    handles, labels = max(
        (axis.get_legend_handles_labels() for axis in axes[: len(traces)]), key=lambda of: len(of[1])
    )
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def closing(summary: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """A bar per policy: how much of the way from the better of LRU and LFU to OPT it goes."""
    found = {policy: figures["closing"] for policy, figures in summary.items() if policy != "opt"}
    bars = sorted(((value, policy) for policy, value in found.items() if value is not None), reverse=True)
    figure = Figure(figsize=(6.4, 0.6 + 0.28 * len(bars)), layout="constrained")
    axis = figure.subplots()
    values = [100 * value for value, _ in bars]
    axis.barh(range(len(bars)), values, color=["#2b8a4b" if value >= 0 else "#c8501e" for value in values])
    axis.set_yticks(range(len(bars)), [policy for _, policy in bars])
    axis.invert_yaxis()
    axis.axvline(0, color="#4a4a4a", linewidth=0.8)
    lowest, highest = min([0.0, *values]), max([1.0, *values])
    axis.set_xlim(lowest * 1.18, highest * 1.3 - lowest * 0.1)
    for place, value in enumerate(values):
        axis.annotate(
            f"{value:.1f}%", (value, place), (3 if value >= 0 else -3, 0), textcoords="offset points",
            va="center", ha="left" if value >= 0 else "right", fontsize=8,
        )  # fmt: skip
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.set_xlabel("of the gap from the better of LRU and LFU to OPT, pooled")
    return figure


def flood(results: list[Mapping[str, Any]]) -> Figure:
    """Hit ratio of four tenants alone, flooded, and flooded with minimum shares."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axis = figure.subplots()
    shown = (("alone", "alone", "#4a4a4a"), ("flooded", "flooded", "#c8501e"))
    shown += (("flooded_with_shares", "flooded, minimum shares", "#2b8a4b"),)
    for offset, (field, label, colour) in enumerate(shown):
        places = [place + (offset - 1) * 0.27 for place in range(len(results))]
        heights = [100 * one[field] for one in results]
        axis.bar(places, heights, width=0.25, color=colour, label=label)
        for place, height in zip(places, heights):
            axis.annotate(
                f"{height:.1f}%", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axis.set_xticks(range(len(results)), [f"{one['capacity_percent']:g}%" for one in results])
    axis.set_xlabel("capacity, of the blocks the four tenants touch")
    axis.set_ylabel("blocks served to the four")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _look(rows: list[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each policy."""
    names = sorted({row["policy"] for row in rows}, key=lambda name: (name not in STRONG, name))
    rest = iter(OTHERS)
    return {
        name: (STRONG.get(name) or next(rest, "#8a8a8a"), MARKS[place % len(MARKS)])
        for place, name in enumerate(names)
    }


if __name__ == "__main__":
    main()
