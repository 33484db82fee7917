"""Commands as modules: how their arguments, help and examples become a parser."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

_MOST_COLUMNS = 100
"""Help is not wider: longer lines are hard to read."""


def add_command(commands: Any, name: str, module: ModuleType, is_listed: bool = True) -> None:
    """Adds a module with `HELP`, `EXAMPLES`, `add_arguments(parser)` and `run(args) -> int` as the command `name`.

    `commands` is what `add_subparsers` returned. `EXAMPLES` are command lines; they are shown below the help.
    """
    # Without `help`, argparse does not list it.
    listed = {"help": module.HELP} if is_listed else {}
    parser = commands.add_parser(name, description=module.HELP, formatter_class=HelpText, **listed)
    module.add_arguments(parser)
    below = [parser.epilog] if parser.epilog else []
    below.append("\n".join(["examples:", *(f"  {example}" for example in module.EXAMPLES)]))
    parser.epilog = "\n\n".join(below)


def add_group(parser: argparse.ArgumentParser, group: str, modules: Mapping[str, ModuleType]) -> None:
    """Makes `parser` that of a command with commands below it, such as `kvtrie trace`."""
    parser.set_defaults(show_help=parser.print_help)
    below = parser.add_subparsers(dest=_chosen(group), metavar="COMMAND")
    for name, module in modules.items():
        add_command(below, name, module)


def run_group(args: argparse.Namespace, group: str, modules: Mapping[str, ModuleType]) -> int:
    """Runs the command that was named below `group`; without one, shows the help."""
    name = getattr(args, _chosen(group))
    if name is None:
        args.show_help()
        return 0
    code: int = modules[name].run(args)
    return code


def _chosen(group: str) -> str:
    return f"{group}_command"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below a parser that are listed in its help, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = [choice.dest for choice in action._choices_actions]
            return {name: action.choices[name] for name in listed}
    return {}


class HelpText(argparse.HelpFormatter):
    """Help whose texts keep their lines: one that begins with two spaces is an item, or an example to be copied."""

    def __init__(self, prog: str) -> None:
        columns = min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
        super().__init__(prog, width=columns - 2)

    def add_argument(self, action: argparse.Action) -> None:
        """Adds an argument; names of commands are indented more than argparse counts, and need room for it."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(self._filled(line, width, indent) for line in text.splitlines())

    def _filled(self, line: str, width: int, indent: str) -> str:
        # Examples are not wrapped, so that they can be copied.
        if re.match(" +kvtrie ", line):
            return indent + line
        lead = indent + line[: len(line) - len(line.lstrip())]
        more = lead + ("    " if lead else "")
        return textwrap.fill(line.strip(), width, initial_indent=lead, subsequent_indent=more)
