"""`kvtrie bench`: measures servers."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import bench_serve
from kvtrie.api.cli.commands import add_command

HELP = "measure a server under a load that is the same for every server"

EXAMPLES = bench_serve.EXAMPLES[:2]

COMMANDS: dict[str, ModuleType] = {"serve": bench_serve}
"""By the word after `kvtrie bench`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    parser.set_defaults(show_help=parser.print_help)
    commands = parser.add_subparsers(dest="bench_command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        add_command(commands, name, module)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named; without one, shows the help."""
    if args.bench_command is None:
        args.show_help()
        return 0
    code: int = COMMANDS[args.bench_command].run(args)
    return code
