"""`python -m bench.chaos --requests 20000` prints what came of it as JSON. Exit status 1: something was wrong."""

from __future__ import annotations

import argparse
import json
import logging
import sys

import torch

from bench.chaos.run import Chaos
from bench.measure import provenance


def main() -> int:
    """Runs, prints, and says whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=8, help="clients, the main thread's included")
    parser.add_argument("--chunks", type=int, default=44, help="size of the pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--interrupt-every", type=float, default=0.05, help="seconds, in the mean; 0 for none"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Each fault of the lower tier is logged; there are thousands.
    logging.getLogger("kvtrie.api.tiers.chunk_records").setLevel(logging.CRITICAL)
    report = Chaos(args.requests, args.threads, args.chunks, args.seed, args.interrupt_every).run()
    for kind in "wrong", "unexpected", "unbalanced":
        for what in getattr(report, kind)[:5]:
            print(f"{kind}: {what}", file=sys.stderr)
    print(
        json.dumps(
            {
                "requests": report.requests,
                "seconds": round(report.seconds, 1),
                "wrong": len(report.wrong),
                "unexpected": len(report.unexpected),
                "unbalanced": report.unbalanced,
                "hangs": 0,
                "interrupts": report.interrupts,
                "rss_bytes_per_1000_requests": round(report.rss_slope),
                "rss_bytes_at_each_tenth": report.rss_bytes,
                "counts": dict(sorted(report.counts.items())),
                "provenance": provenance(),
            },
            indent=2,
        )
    )
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
