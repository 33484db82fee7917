"""Eviction policies on real traces: every policy, trace and capacity; what SHARDS misses; what a flood costs.

    python -m bench.policies                                 all of it (an hour on one core)
    python -m bench.policies --traces mooncake_toolagent_mix_dev --capacities 1,5,10
    python -m bench.policies --resume FILE                   only what that file lacks

Writes JSON under `bench/results/`; `python -m bench.eviction_plots FILE` draws `docs/eviction-*.svg` from it.
The *closing* of a policy is sum(policy - best of LRU and LFU) / sum(OPT - best), over traces and 1%, 5%, 10%.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import flood, shards
from bench.measure import provenance
from bench.traces import DEV_TRACES, read_trace
from kvtrie.api.trace import Trace, replay
from kvtrie.api.trace.policies import OPT, fresh_policy, simulated_policies

RESULTS = Path(__file__).parent / "results"
CAPACITIES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 50.0)
"""Percent of a trace's unique blocks."""
POOLED = (1.0, 5.0, 10.0)
"""Over these the closing is taken."""
COMPARED = 25.0
"""Up to here a policy should not fall behind the better of LRU and LFU."""

Ratios = dict[tuple[str, float, str], float]
"""Hit ratio in blocks by trace, capacity and policy."""


def main() -> None:
    """Entry point of `python -m bench.policies`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", default=",".join(DEV_TRACES), help="names or paths, separated by commas")
    parser.add_argument("--policies", default=",".join(simulated_policies()))
    parser.add_argument("--capacities", default=",".join(f"{part:g}" for part in CAPACITIES), help="percent")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="take from there what it has, and add to it"
    )
    parser.add_argument("--only-policies", action="store_true", help="neither SHARDS nor the flood")
    args = parser.parse_args()
    made = provenance()
    path = args.resume or RESULTS / f"policies-{str(made['date'])[:10]}-{made['commit']}.json"
    found: dict[str, Any] = {"rows": [], "shards": {}, "flood": None}
    if args.resume is not None:
        found = json.loads(args.resume.read_text(encoding="utf-8"))
    found.setdefault("provenance", made)
    if args.resume is not None:
        found.setdefault("resumed", []).append(made)
    done = {(row["trace"], row["capacity_percent"], row["policy"]) for row in found["rows"]}
    for name in args.traces.split(","):
        trace = read_trace(name)
        for capacity in map(float, args.capacities.split(",")):
            for policy in args.policies.split(","):
                if (trace.name, capacity, policy) not in done:
                    found["rows"].append(_row(trace, capacity, policy))
                    _save(path, found)
        if not args.only_policies and trace.name not in found["shards"]:
            found["shards"][trace.name] = measured = shards.run(trace)
            print(f"{trace.name:28} SHARDS", *(f"{what} {value:.4g}" for what, value in measured.items()))
            _save(path, found)
    if not args.only_policies and found.get("flood") is None:
        found["flood"] = [asdict(one) for one in flood.run(read_trace(DEV_TRACES[0]))]
        for one in found["flood"]:
            print("flood", json.dumps(one))
    found["summary"] = summary(found["rows"])
    _save(path, found)
    for policy, figures in found["summary"].items():
        print(f"{policy:10}", *(f"{what} {_shown(value)}" for what, value in figures.items()))
    print(f"written to {path}")


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """By policy: pooled mean hit ratio, closing, and the worst shortfall behind the better of LRU and LFU.

    Over what traces and capacities all of it needs are there; None where none is.
    """
    ratios: Ratios = {
        (row["trace"], row["capacity_percent"], row["policy"]): row["hit_ratio_blocks"] for row in rows
    }
    cases = sorted({(trace, capacity) for trace, capacity, _ in ratios})
    best = {
        case: max(ratios[(*case, "lru")], ratios[(*case, "lfu")])
        for case in cases
        if (*case, "lru") in ratios and (*case, "lfu") in ratios
    }
    found: dict[str, dict[str, float | None]] = {}
    for policy in dict.fromkeys(policy for _, _, policy in ratios):
        mine = [case for case in best if (*case, policy) in ratios]
        pooled = [case for case in mine if case[1] in POOLED and (*case, OPT) in ratios]
        gap = sum(ratios[(*case, OPT)] - best[case] for case in pooled)
        won = sum(ratios[(*case, policy)] - best[case] for case in pooled)
        behind = [best[case] - ratios[(*case, policy)] for case in mine if case[1] <= COMPARED]
        found[policy] = {
            "cases": float(len(pooled)),
            "mean_hit_ratio": sum(ratios[(*case, policy)] for case in pooled) / len(pooled)
            if pooled
            else None,
            "closing": won / gap if gap > 0 else None,
            "worst_shortfall": max(behind) if behind else None,
        }
    return dict(sorted(found.items(), key=lambda item: -(item[1]["mean_hit_ratio"] or 0.0)))


def _row(trace: Trace, capacity: float, name: str) -> dict[str, Any]:
    blocks = int(capacity / 100 * trace.unique_blocks)
    policy, before_request = fresh_policy(name, trace, blocks)
    result = replay(trace, blocks, policy, name, before_request=before_request)
    row = {
        "trace": trace.name,
        "policy": name,
        "capacity_percent": capacity,
        "capacity_blocks": blocks,
        "hit_ratio_blocks": result.hit_ratio_blocks(),
        "hit_ratio_tokens": result.hit_ratio_tokens(),
        "seconds": result.seconds,
    }
    print(
        f"{trace.name:28} {capacity:5g}% {name:10} {row['hit_ratio_blocks']:.4f} {result.seconds:7.1f} s",
        flush=True,
    )
    return row


def _save(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
