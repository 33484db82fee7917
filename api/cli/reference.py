"""Writes `docs/cli.md` from the parser: `python -m kvtrie.api.cli.reference > docs/cli.md`.

Made from the parser's arguments, and not from its help: how argparse prints that differs from one Python to
the next.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator

from kvtrie.api.cli import build_parser
from kvtrie.api.cli.commands import HelpText, subcommands

_COLUMNS = 110

_HEAD = """\
# The command line

<!-- Made by `python -m kvtrie.api.cli.reference > docs/cli.md`. Not edited by hand. -->

    kvtrie COMMAND ...
    kvtrie help [COMMAND ...]       # or kvtrie COMMAND --help
    kvtrie --version

Exit codes: 0 done, 1 a check or comparison did not hold, 2 bad usage or input, 3 something it needs is
missing or unreachable. An error is one line on stderr that says what to do. `--format json` prints a document
with `format` and `version`, for programs.

A `SIZE` is a number with a unit or without: `2G` and `2GiB` are 2^30 bytes each, `2GB` is 10^9; likewise `K`,
`M` and `T`. `4096` is bytes.
"""


def reference() -> str:
    """The page, as it must be in `docs/cli.md`."""
    return _HEAD + "\n" + "\n".join(_sections(build_parser())) + "\n"


def _sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    for command in subcommands(parser).values():
        below = subcommands(command)
        yield from _section(command, has_commands=bool(below))
        yield from _sections(command)


def _section(command: argparse.ArgumentParser, has_commands: bool) -> Iterator[str]:
    yield f"## {command.prog}"
    yield ""
    description = command.description or ""
    yield _filled(f"{description[:1].upper()}{description[1:]}{'' if description.endswith('?') else '.'}")
    yield ""
    if not has_commands:
        yield from _usage(command)
        yield from _arguments(command)
    yield from _below(command.epilog or "")


def _usage(command: argparse.ArgumentParser) -> Iterator[str]:
    if command.usage:
        for line in (command.usage % {"prog": command.prog}).split(" | "):
            yield f"    {line}"
    else:
        words = [command.prog]
        if any(action.option_strings and action.dest != "help" for action in command._actions):
            words.append("[OPTION ...]")
        words += [_placeholder(action) for action in command._actions if not action.option_strings]
        yield f"    {' '.join(words)}"
    yield ""


def _placeholder(action: argparse.Action) -> str:
    name = _value(action)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _arguments(command: argparse.ArgumentParser) -> Iterator[str]:
    for group in command._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        # argparse's own groups need no heading: what is an option begins with two hyphens.
        if group not in (command._positionals, command._optionals):
            title = group.title or ""
            yield f"{title[:1].upper()}{title[1:]}:"
            yield ""
        for action in actions:
            yield _filled(f"* `{_written(action)}`: {HelpText(command.prog)._expand_help(action)}", "  ")
        yield ""


def _written(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _value(action)
    return " ".join(part for part in (", ".join(action.option_strings), value) if part)


def _value(action: argparse.Action) -> str:
    if action.metavar is None and action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _below(epilog: str) -> Iterator[str]:
    """The text below a command's help: its lists become Markdown's, its examples a block."""
    for paragraph in epilog.split("\n\n"):
        lines = paragraph.splitlines()
        for line in lines:
            if line == "examples:":
                yield "Examples:"
            elif line.startswith("  ") and lines[0] == "examples:":
                yield f"    {line.strip()}"
            elif line.startswith("  "):
                name, _, meaning = line.strip().partition(": ")
                yield _filled(f"* `{name}`: {meaning}", "  ")
            else:
                yield _filled(f"{line[:1].upper()}{line[1:]}")
            if line.endswith(":") and not line.startswith(" "):
                yield ""
        yield ""


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    print(reference(), end="")
