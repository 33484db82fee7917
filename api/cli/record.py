"""`kvtrie trace record`: keeps an anonymised log of a server's requests, and tells what is in one."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from kvtrie.api.byte_size import SIZE_HELP, parse_bytes
from kvtrie.api.cli.child_server import run_server
from kvtrie.api.cli.console import escaped, write
from kvtrie.api.cli.simulation_text import trace_text
from kvtrie.api.trace.open_trace import open_trace
from kvtrie.api.trace.reuse import reuse_distances
from kvtrie.api.trace.simulation import trace_facts
from kvtrie.api.traffic.recorder import SMALLEST_BYTES
from kvtrie.prefix_tree.errors import InputError

HELP = "record a server's requests, anonymised, for kvtrie trace simulate; or show what a trace holds"
EXAMPLES = (
    "kvtrie trace record traffic.jsonl -- python serve.py",
    "kvtrie trace record --bytes 1G traffic-%p.jsonl -- python serve.py --port 8000",
    "kvtrie trace record --info traffic.jsonl",
)
FORMAT = "kvtrie-trace-info"
VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.usage = "%(prog)s [--bytes SIZE] FILE -- COMMAND... | %(prog)s --info FILE"
    parser.add_argument("file", type=Path, metavar="FILE", help="the trace; %%p in it becomes the process id")
    parser.add_argument("program", nargs="*", metavar="COMMAND", help="run with KVTRIE_TRACE=FILE")
    parser.add_argument("--info", action="store_true", help="say what FILE holds, of any form simulate reads")
    parser.add_argument(
        "--bytes", metavar="SIZE", help=f"most that is kept, in two halves: {SIZE_HELP} (default: 256MiB)"
    )
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="of --info (default: %(default)s)"
    )
    parser.epilog = (
        "Written are salted block ids, times, pseudonyms and token counts; never text or tokens. Any kvtrie "
        "engine or sidecar does the same when KVTRIE_TRACE=FILE is in its environment."
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code, or prints what the trace holds."""
    if args.info:
        if args.program:
            raise InputError("--info shows a trace and runs nothing: leave COMMAND out")
        return _info(args.file, args.format)
    if not args.program:
        raise InputError(
            "give the command to record: kvtrie trace record FILE -- COMMAND...; or show a trace with --info FILE"
        )
    if args.bytes is not None and parse_bytes(args.bytes) < SMALLEST_BYTES:
        raise InputError(f"--bytes {args.bytes} is too small; give at least {SMALLEST_BYTES}")
    path = args.file.absolute()
    if not path.parent.is_dir():
        raise InputError(f"trace {escaped(str(args.file))}: there is no folder {escaped(str(path.parent))}")
    environment = {**os.environ, "KVTRIE_TRACE": str(path)}
    if args.bytes is not None:
        environment["KVTRIE_TRACE_BYTES"] = args.bytes
    return run_server(args.program, environment)


def _info(path: Path, form: str) -> int:
    facts = trace_facts(reuse_distances(open_trace(path)))
    if form == "json":
        write(json.dumps({"format": FORMAT, "version": VERSION, **asdict(facts)}))
    else:
        write(trace_text(facts))
    return 0
