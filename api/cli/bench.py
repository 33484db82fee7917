"""`kvtrie bench`: measures servers."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import bench_serve
from kvtrie.api.cli.commands import add_group, run_group

HELP = "measure a server under a load that is the same for every server"

EXAMPLES = bench_serve.EXAMPLES[:2]

COMMANDS: dict[str, ModuleType] = {"serve": bench_serve}
"""By the word after `kvtrie bench`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    add_group(parser, "bench", COMMANDS)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named; without one, shows the help."""
    return run_group(args, "bench", COMMANDS)
