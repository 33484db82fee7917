"""`kvtrie completion`: a script that completes kvtrie's commands and options in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from kvtrie.api.cli.commands import subcommands
from kvtrie.api.cli.console import write

HELP = "print a script that completes commands and options in bash, zsh, fish or tcsh"
EXAMPLES = (
    "kvtrie completion bash > ~/.local/share/bash-completion/completions/kvtrie",
    'kvtrie completion zsh > "${fpath[1]}/_kvtrie"',
    "kvtrie completion fish > ~/.config/fish/completions/kvtrie.fish",
)
SHELLS = ("bash", "zsh", "fish", "tcsh")
"""Those that every admitted version of shtab knows."""

_OF_FILES = ("FILE", "TRACE", "DIR")
"""Parts of the placeholders of arguments that are completed with names of files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to read the script")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    # shtab writes a static script. argcomplete, the other kept library, starts the command at every press of Tab:
    # a third of a second here, where commands import what they need to declare their arguments.
    try:
        import shtab
    except ImportError:
        raise ImportError("shell completion needs shtab") from None

    from kvtrie.api.cli import build_parser

    parser = build_parser()
    for command in _all(parser):
        for action in command._actions:
            if any(part in str(action.metavar) for part in _OF_FILES):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    write(shtab.complete(parser, shell=args.shell).rstrip("\n"))
    return 0


def _all(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for command in subcommands(parser).values():
        yield from _all(command)
