"""The `kvtrie` command: parse, call, print.

Exit codes: 0 done, 1 a check or comparison did not hold, 2 bad usage or input, 3 something it needs is
missing or unreachable. Errors are one line on stderr with what to do.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from kvtrie.prefix_tree.errors import InputError, KvtrieError

COMMANDS = ("chat", "demo", "doctor", "dump", "explain", "serve", "sidecar", "stats", "trace")
"""Each is a module of this package with `HELP`, `add_arguments(parser)` and `run(args) -> int`."""

RENAMED = {"record": "trace record", "simulate": "trace simulate"}
"""Commands by their former names, which still work and are not listed; modules of this package too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `kvtrie` script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="kvtrie",
        description="Prefix-trie KV reuse: serve a cache, look into it, see why a prompt missed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules: dict[str, ModuleType] = {}
    for name in COMMANDS:
        module = importlib.import_module(f"kvtrie.api.cli.{name}")
        modules[name] = module
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    for name in RENAMED:
        modules[name] = module = importlib.import_module(f"kvtrie.api.cli.{name}")
        # Without `help`, argparse does not list it.
        module.add_arguments(commands.add_parser(name, description=module.HELP))
    args = parser.parse_args(argv)
    if args.command in RENAMED:
        print(f"kvtrie {args.command} is now called kvtrie {RENAMED[args.command]}", file=sys.stderr)
    try:
        code: int = modules[args.command].run(args)
    except InputError as error:
        print(f"kvtrie {args.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"kvtrie {args.command}: {error}; install it with: pip install 'kvtrie[all]'", file=sys.stderr)
        return 3
    except (KvtrieError, OSError) as error:
        print(f"kvtrie {args.command}: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return code
