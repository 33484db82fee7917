"""Runs the benchmarks, prints a table, and writes JSON under `bench/results/`."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from bench import tree
from bench.measure import provenance

RESULTS = Path(__file__).parent / "results"

PARTS = ("tree", "planner", "serving", "sidecar")
"""Modules of this package, imported when they are run: the tree and its peers want no torch."""

TARGETS = {
    **tree.TARGETS,
    "plan_first_us": 300,
    "plan_append_us": 10,
    "plan_join_us": 60,
    "plan_leave_us": 60,
    "hit_over_deepcopy": 1.0,
    "hit_over_full_prefill": 0.12,
    "sidecar_match_tcp_over_unix": 2.0,
    "sidecar_load_tcp_over_unix": 2.0,
}
"""Most that a figure should be; `batch_throughput_ratio` should be at least 3."""


def main() -> None:
    """Entry point of `python -m bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for name in PARTS:
        if args.only in (None, name):
            figures |= import_module(f"bench.{name}").run()
    made = provenance()
    for name, value in figures.items():
        target = TARGETS.get(name)
        aim = f"   (<= {target})" if target else "   (>= 3)" if name == "batch_throughput_ratio" else ""
        print(f"{name:36} {value:10.3f}{aim}")
    print(f"{made['machine']}, {made['cores']} cores, commit {made['commit']}")
    if not args.no_write:
        RESULTS.mkdir(exist_ok=True)
        part = f"-{args.only}" if args.only else ""
        path = RESULTS / f"cpu{part}-{str(made['date'])[:10]}-{made['commit']}.json"
        path.write_text(
            json.dumps({"provenance": made, "figures": figures}, indent=2) + "\n", encoding="utf-8"
        )
        print(f"written to {path}")


if __name__ == "__main__":
    main()
