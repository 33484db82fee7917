"""`kvtrie help`: the help of kvtrie or of one of its commands."""

from __future__ import annotations

import argparse

from kvtrie.api.cli.commands import subcommands
from kvtrie.api.close_names import close_names
from kvtrie.prefix_tree.errors import InputError

HELP = "show this help, or the help of a command"
EXAMPLES = ("kvtrie help", "kvtrie help explain", "kvtrie help trace simulate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("topic", nargs="*", metavar="COMMAND", help="the command, such as: trace simulate")


def run(args: argparse.Namespace) -> int:
    """Prints the help."""
    # The parser is made of all commands, of which this one is.
    from kvtrie.api.cli import build_parser

    parser = build_parser()
    for name in args.topic:
        known = subcommands(parser)
        if name not in known:
            raise InputError(f"{parser.prog} has no command {name!a}{did_you_mean(name, known)}")
        parser = known[name]
    parser.print_help()
    return 0


def did_you_mean(name: str, known: dict[str, argparse.ArgumentParser]) -> str:
    """A suggestion for a mistyped command, or the commands that there are."""
    close = close_names(name, known)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; it has {', '.join(known)}" if known else ""
