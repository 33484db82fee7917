"""`kvtrie trace`: keeps logs of real requests, and replays them through caches of other sizes and policies."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import record, simulate
from kvtrie.api.cli.commands import add_command

HELP = "record a server's requests, anonymised, or simulate a cache on recorded ones"

EXAMPLES = (*record.EXAMPLES[:1], *simulate.EXAMPLES[:1])

COMMANDS: dict[str, ModuleType] = {"record": record, "simulate": simulate}
"""By the word after `kvtrie trace`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    parser.set_defaults(show_help=parser.print_help)
    commands = parser.add_subparsers(dest="trace_command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        add_command(commands, name, module)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named; without one, shows the help."""
    if args.trace_command is None:
        args.show_help()
        return 0
    code: int = COMMANDS[args.trace_command].run(args)
    return code
