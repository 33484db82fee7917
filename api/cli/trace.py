"""`kvtrie trace`: keeps logs of real requests, and replays them through caches of other sizes and policies."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import record, simulate

HELP = "record a server's requests, anonymised, or simulate a cache on recorded ones"

COMMANDS: dict[str, ModuleType] = {"record": record, "simulate": simulate}
"""By the word after `kvtrie trace`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    commands = parser.add_subparsers(dest="trace_command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named."""
    code: int = COMMANDS[args.trace_command].run(args)
    return code
