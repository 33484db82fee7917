"""Draws a run's JSON as SVG and PNG: `python -m bench.gpu.plots RESULT.json`. Wants matplotlib, nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TARGET_PERCENT = 80
PEER_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#64b5cd")
BOUND_COLOURS = {"memory": "#4c72b0", "compute": "#dd8452"}
OURS = "#4c72b0"
THEIRS = "#999999"


def draw(result: Path) -> list[Path]:
    """Draws what the document has, beside it; returns the files.

    Raises:
        ModuleNotFoundError: no matplotlib.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("matplotlib is not installed: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kvtrie"
    document = json.loads(result.read_text(encoding="utf-8"))
    rows = [row for row in document.get("grid", []) if "seconds" in row]
    figures: dict[str, Any] = {}
    if rows:
        figures["floor"] = _floor(rows, _title(document))
    if any("ratio" in peer for row in rows for peer in row["peers"].values()):
        figures["peers"] = _peers(rows, _title(document))
    ways = {
        name: way
        for name, way in document.get("serve", {}).get("ways", {}).items()
        if "tokens_per_second" in way
    }
    if ways:
        figures["serving"] = _serving(ways, _title(document))
    drawn = []
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            path = result.with_name(f"{result.stem}-{name}.{ending}")
            figure.savefig(
                path, dpi=130, bbox_inches="tight", metadata={"Date": None} if ending == "svg" else None
            )
            drawn.append(path)
    return drawn


def _title(document: dict[str, Any]) -> str:
    machine = document["machine"]
    device = (machine.get("device") or {}).get("name", "no GPU")
    dry = " - DRY RUN, figures mean nothing" if document["settings"].get("dry") else ""
    return f"{device}, {machine['date'][:10]}, commit {machine['commit']}{dry}"


def _axes(rows: int, width: float = 9.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 1.6 + 0.27 * rows))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=7)
    axes.xaxis.label.set_size(8)
    return figure, axes


def _floor(rows: list[dict[str, Any]], title: str) -> Any:
    figure, axes = _axes(len(rows))
    places = range(len(rows))
    percents = [row["percent_of_floor"] for row in rows]
    axes.barh(places, percents, color=[BOUND_COLOURS[row["bound"]] for row in rows], height=0.7)
    for place, row in zip(places, rows):
        axes.text(
            row["percent_of_floor"],
            place,
            f" {row['percent_of_floor']:.0f}%  {_time(row['seconds'])}",
            va="center",
            fontsize=7,
            bbox=_WHITE,
        )
    axes.axvline(TARGET_PERCENT, color="black", linewidth=0.8, linestyle="--")
    _name_rows(axes, rows)
    axes.set_xlim(0, max(110, 1.15 * max(percents)))
    axes.set_xlabel("% of the floor reached (100 = at the device's measured limit)")
    axes.grid(axis="x", alpha=0.3)
    handles = [_patch(colour, f"{bound}-bound") for bound, colour in BOUND_COLOURS.items()]
    axes.legend(handles=[*handles, _line("target: 80%")], **_ABOVE, ncols=3)
    axes.set_title(f"Attention against the floor\n{title}", fontsize=9, loc="left", pad=26)
    return figure


def _peers(rows: list[dict[str, Any]], title: str) -> Any:
    names = list(
        dict.fromkeys(name for row in rows for name, peer in row["peers"].items() if "ratio" in peer)
    )
    figure, axes = _axes(len(rows))
    for name, colour in zip(names, PEER_COLOURS):
        points = [
            (row["peers"][name]["ratio"], place)
            for place, row in enumerate(rows)
            if "ratio" in row["peers"].get(name, {})
        ]
        axes.scatter(
            *zip(*points), s=22, color=colour, label=name, zorder=3, edgecolors="white", linewidths=0.4
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}x" if str(f"{value:e}")[0] in "25" else "")
    axes.tick_params(axis="x", which="both", labelsize=7)
    _name_rows(axes, rows)
    axes.set_xlabel("peer's time / ours (right of 1: ours is faster)")
    axes.grid(alpha=0.3)
    axes.legend(**_ABOVE, ncols=min(4, len(names)))
    axes.set_title(
        f"Against its peers\n{title}", fontsize=9, loc="left", pad=26 + 12 * ((len(names) - 1) // 4)
    )
    return figure


def _serving(ways: dict[str, dict[str, Any]], title: str) -> Any:
    figure, axes = _axes(len(ways) + 1)
    names = list(ways)
    speeds = [way["tokens_per_second"] for way in ways.values()]
    axes.barh(
        range(len(names)),
        speeds,
        color=[THEIRS if name.startswith("HF") else OURS for name in names],
        height=0.65,
    )
    for place, way in enumerate(ways.values()):
        first = way.get("ttft_median_seconds")
        said = f", first token after {_time(first)}" if first else ""
        axes.text(
            way["tokens_per_second"], place, f" {way['tokens_per_second']:.0f}{said}", va="center", fontsize=7
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(speeds))
    axes.set_xlabel("new tokens per second, prefill included; median time to first token")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"Serving\n{title}", fontsize=9, loc="left")
    return figure


_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
_ABOVE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "fontsize": 7,
    "frameon": False,
    "borderaxespad": 0.3,
}


def _name_rows(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _line(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color="black", linewidth=0.8, linestyle="--", label=label)


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def main() -> int:
    """Entry point of `python -m bench.gpu.plots`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="JSON that python -m bench.gpu wrote")
    args = parser.parse_args()
    try:
        for path in draw(args.result):
            print(path)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
