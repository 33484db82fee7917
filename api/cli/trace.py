"""`kvtrie trace`: keeps logs of real requests, and replays them through caches of other sizes and policies."""

from __future__ import annotations

import argparse
from types import ModuleType

from kvtrie.api.cli import record, simulate
from kvtrie.api.cli.commands import add_group, run_group

HELP = "record a server's requests, anonymised, or simulate a cache on recorded ones"

EXAMPLES = (*record.EXAMPLES[:1], *simulate.EXAMPLES[:1])

COMMANDS: dict[str, ModuleType] = {"record": record, "simulate": simulate}
"""By the word after `kvtrie trace`; like the modules of `kvtrie.api.cli.COMMANDS`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the commands below this one, with their arguments."""
    add_group(parser, "trace", COMMANDS)


def run(args: argparse.Namespace) -> int:
    """Runs the command that was named; without one, shows the help."""
    return run_group(args, "trace", COMMANDS)
