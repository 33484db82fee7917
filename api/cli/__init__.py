"""The `kvtrie` command: parse, call, print.

Exit codes: 0 done, 1 a check or comparison did not hold, 2 bad usage or input, 3 something it needs is
missing or unreachable. Errors are one line on stderr with what to do. `kvtrie` alone shows its help and exits
with 0, as docker, gh, kubectl and pip do.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kvtrie.api.cli.commands import HelpText, add_command, subcommands
from kvtrie.prefix_tree.errors import InputError, KvtrieError

COMMANDS = (
    "chat",
    "completion",
    "demo",
    "doctor",
    "dump",
    "explain",
    "help",
    "sidecar",
    "stats",
    "trace",
)
"""Each is a module of this package with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(args) -> int`."""

RENAMED = {"record": "trace record", "simulate": "trace simulate"}
"""Commands by their former names, which still work and are not listed; modules of this package too."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. `kvtrie.api.cli.<command>` runs what it has parsed."""
    parser = argparse.ArgumentParser(
        prog="kvtrie",
        description="Prefix-trie KV reuse: serve a cache, look into it, see why a prompt missed.",
        epilog="kvtrie help COMMAND shows a command's options, with examples.",
        formatter_class=HelpText,
    )
    parser.add_argument("--version", action="store_true", help="show kvtrie's version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in (*COMMANDS, *RENAMED):
        add_command(commands, name, importlib.import_module(f"kvtrie.api.cli.{name}"), name not in RENAMED)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `kvtrie` script; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if given and not given[0].startswith("-") and given[0] not in (*COMMANDS, *RENAMED):
        from kvtrie.api.cli.help import did_you_mean

        print(
            f"kvtrie: no command {given[0]!a}{did_you_mean(given[0], subcommands(parser))}", file=sys.stderr
        )
        return 2
    args = parser.parse_args(given)
    if args.version:
        from kvtrie import __version__

        print(f"kvtrie {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    if args.command in RENAMED:
        print(f"kvtrie {args.command} is now called kvtrie {RENAMED[args.command]}", file=sys.stderr)
    try:
        code: int = importlib.import_module(f"kvtrie.api.cli.{args.command}").run(args)
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
