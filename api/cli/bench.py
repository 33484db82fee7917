"""`kvtrie bench`: measures servers."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import bench_serve

HELP = "measure a server under a load that is the same for every server"

EXAMPLES = bench_serve.EXAMPLES[:2]

COMMANDS: dict[str, ModuleType] = {"serve": bench_serve}
"""By the word after `kvtrie bench`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named."""
    code: int = COMMANDS[args.bench_command].run(args)
    return code
