"""`kvtrie trace simulate`: what a cache of some size, under some policy, would have made of real traffic."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

from kvtrie.api.cli.console import write
from kvtrie.api.cli.simulation_text import simulation_text
from kvtrie.api.tokenizer import TOKENIZER_HELP, open_tokenizer
from kvtrie.api.trace.capacity import parse_capacities
from kvtrie.api.trace.csv_arrivals import BLOCK_TOKENS, Encode
from kvtrie.api.trace.kv_bytes import kv_bytes_per_token
from kvtrie.api.trace.open_trace import FORMS, open_trace
from kvtrie.api.trace.plot import plot_simulation
from kvtrie.api.trace.plot_file import check_plot
from kvtrie.api.trace.policies import check_policy, simulated_policies
from kvtrie.api.trace.simulation import Row, Simulation, joined, simulate
from kvtrie.api.trace.trace import Trace
from kvtrie.prefix_tree.errors import InputError

HELP = "replay traces of real traffic: what would the hit ratio be with other memory, or another policy?"
EXAMPLES = (
    "kvtrie trace simulate traffic.jsonl",
    "kvtrie trace simulate traffic.jsonl --capacity 5%,8G --model-config config.json",
    "kvtrie trace simulate traffic.jsonl --policy lru,learned,opt --per-tenant --plot cache.svg",
)
FORMAT = "kvtrie-simulation"
VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help=f"plain or .gz: {FORMS}")
    parser.add_argument(
        "--capacity",
        default="1%,5%,10%,25%,50%",
        metavar="LIST",
        help="of a trace's unique blocks (5%%), of KV (4G, needs --model-config), or 5000blocks; "
        "separated by commas (default: %(default)s)".replace("1%", "1%%"),
    )
    parser.add_argument(
        "--policy",
        default="lru",
        metavar="LIST",
        help=f"of {', '.join(simulated_policies())}, or all (default: %(default)s)",
    )
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="config.json of the model served")
    parser.add_argument("--per-tenant", action="store_true", help="a row for each tenant too")
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default: %(default)s"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a .png or .svg (matplotlib)")
    prompts = parser.add_argument_group("CSV with a prompt column")
    prompts.add_argument(
        "--block-tokens", type=int, default=BLOCK_TOKENS, metavar="N", help="default: %(default)s"
    )
    prompts.add_argument(
        "--tokenizer", metavar="NAME", help=f"{TOKENIZER_HELP} (default: four bytes of text are a token)"
    )


def run(args: argparse.Namespace) -> int:
    """Replays the traces, and prints the results."""
    # 1. What can be wrong is found before anything is replayed.
    capacities = parse_capacities(args.capacity)
    policies = _policies(args.policy)
    token_bytes = None if args.model_config is None else kv_bytes_per_token(args.model_config)
    if args.plot is not None:
        check_plot(args.plot)
    encode = _encode(args.tokenizer)
    traces = _named_apart([open_trace(path, args.block_tokens, encode) for path in args.traces])
    block_bytes = [None if token_bytes is None else token_bytes * trace.block_tokens for trace in traces]
    for trace, size_bytes in zip(traces, block_bytes):
        # A capacity that this trace or model has no meaning for.
        for capacity in capacities:
            capacity.in_blocks(trace.unique_blocks, size_bytes)
    # 2. Each trace, under each policy and capacity.
    replays = len(policies) * len(capacities)
    with _progress(sum(map(len, traces)) * replays) as advance:
        simulation = joined(
            [
                simulate(
                    trace,
                    policies,
                    capacities,
                    token_bytes=token_bytes,
                    per_tenant=args.per_tenant,
                    progress=advance,
                )
                for trace in traces
            ]
        )
    # 3. The results.
    if args.plot is not None:
        plot_simulation(simulation, args.plot)
    if args.format == "json":
        write(json.dumps({"format": FORMAT, "version": VERSION, **_document(simulation)}))
    elif args.format == "csv":
        write(_csv(simulation.rows))
    else:
        write(simulation_text(simulation))
    return 0


def _policies(text: str) -> list[str]:
    if text.strip() == "all":
        return list(simulated_policies())
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        check_policy(name)
    if len(set(names)) != len(names):
        raise InputError(f"--policy {text!a} names a policy twice")
    return names


def _named_apart(traces: Sequence[Trace]) -> list[Trace]:
    """The traces; of those with one name, the second is `name (2)`."""
    seen: Counter[str] = Counter()
    found = []
    for trace in traces:
        seen[trace.name] += 1
        again = seen[trace.name]
        found.append(trace if again == 1 else replace(trace, name=f"{trace.name} ({again})"))
    return found


def _encode(name: str | None) -> Encode | None:
    if name is None:
        return None
    tokenizer = open_tokenizer(name)
    return lambda text: tokenizer.encode(text, True)


def _document(simulation: Simulation) -> dict[str, object]:
    return {
        "rows": [asdict(row) for row in simulation.rows],
        "replays": [asdict(one) for one in simulation.replayed],
        "traces": [asdict(facts) for facts in simulation.facts],
    }


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: getattr(row, name) for name in names} for row in rows)
    return out.getvalue().rstrip("\n")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, where that is a terminal and rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield None
        return
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("replaying"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=total)
        yield lambda done: bar.advance(task, done)
