"""Help, examples, the version, completion, and the page made of them."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from kvtrie.api.cli import COMMANDS, build_parser, main
from kvtrie.api.cli.commands import subcommands
from kvtrie.api.cli.reference import reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cli.md"


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Every listed command, those below others included."""
    return [one for command in subcommands(parser).values() for one in (command, *parsers(command))]


ALL = parsers(build_parser())


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The command's exit code and what it printed; argparse ends the process."""
    capsys.readouterr()
    try:
        code = main(list(arguments))
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, *capsys.readouterr()


def test_every_command_is_there():
    names = {parser.prog.removeprefix("kvtrie ") for parser in ALL}
    assert names == {*COMMANDS, "trace record", "trace simulate"}


def test_version(capsys):
    assert run("--version", capsys=capsys) == (0, f"kvtrie {version('kvtrie')}\n", "")


def test_kvtrie_alone_shows_its_help(capsys):
    code, out, err = run(capsys=capsys)
    assert (code, err) == (0, "")
    assert out == run("--help", capsys=capsys)[1] == run("help", capsys=capsys)[1]
    for name in COMMANDS:
        assert re.search(rf"^    {name} +\S", out, re.MULTILINE), name


def test_trace_alone_shows_its_help(capsys):
    code, out, err = run("trace", capsys=capsys)
    assert (code, err) == (0, "")
    assert out == run("trace", "--help", capsys=capsys)[1]


@pytest.mark.parametrize("command", [parser.prog.split()[1:] for parser in ALL])
def test_help_of_a_command(command, capsys):
    code, out, err = run("help", *command, capsys=capsys)
    assert (code, err) == (0, "")
    assert out == run(*command, "--help", capsys=capsys)[1]
    assert out.startswith(f"usage: kvtrie {' '.join(command)} ")
    assert f"\nexamples:\n  kvtrie {' '.join(command)}" in out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["dmup"], "kvtrie: no command 'dmup'; did you mean dump?\n"),
        (["zzz"], f"kvtrie: no command 'zzz'; it has {', '.join(COMMANDS)}\n"),
        (["help", "explian"], "kvtrie help: kvtrie has no command 'explian'; did you mean explain?\n"),
        (
            ["help", "trace", "recrod"],
            "kvtrie help: kvtrie trace has no command 'recrod'; did you mean record?\n",
        ),
        (["help", "dump", "x"], "kvtrie help: kvtrie dump has no command 'x'\n"),
    ],
)
def test_a_mistyped_command(arguments, error, capsys):
    assert run(*arguments, capsys=capsys) == (2, "", error)


def examples() -> list[str]:
    """The command lines below every command's help."""
    return [
        line.strip()
        for parser in [build_parser(), *ALL]
        for line in str(parser.epilog).splitlines()
        if line.startswith("  kvtrie ")
    ]


@pytest.mark.parametrize("line", examples())
def test_an_example_is_a_command_line_that_kvtrie_takes(line):
    words = shlex.split(line)
    ends = [i for i, word in enumerate(words) if word in ("|", ">")]
    arguments = words[1 : ends[0] if ends else None]
    args = build_parser().parse_args(arguments)
    assert args.command == arguments[0]


def test_every_command_has_examples_and_every_argument_a_help():
    for parser in ALL:
        assert str(parser.epilog).count("\n  kvtrie ") >= 2, parser.prog
        for action in parser._actions:
            assert action.help or subcommands(parser), f"{parser.prog} {action.dest}"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for parser in [build_parser(), *ALL]:
        for line in parser.format_help().splitlines():
            # Examples are not wrapped, so that they can be copied.
            if not line.startswith("  kvtrie ") and " | " not in line:
                assert len(line) <= columns, line


def test_the_page_of_the_command_line_is_up_to_date():
    assert PAGE.read_text() == reference(), "run python -m kvtrie.api.cli.reference > docs/cli.md"


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
    def test_a_script_for_each_shell(self, shell, capsys):
        pytest.importorskip("shtab")
        code, out, err = run("completion", shell, capsys=capsys)
        assert (code, err) == (0, "")
        for word in ("explain", "simulate", "prefill-rate"):
            assert word in out
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=out.encode(), check=True, capture_output=True)

    @pytest.mark.parametrize(
        ("words", "completed"),
        [
            (["du"], ["dump"]),
            (["trace", "re"], ["record"]),
            (["dump", "--tok"], ["--tokenizer"]),
            (["dump", "tree.json", "--format", "d"], ["dot"]),
            (["dump", "snap"], ["snapshot.json"]),
            (["si"], ["sidecar"]),
        ],
    )
    def test_bash_completes(self, words, completed, capsys, tmp_path):
        pytest.importorskip("shtab")
        (tmp_path / "snapshot.json").touch()
        (tmp_path / "script").write_text(run("completion", "bash", capsys=capsys)[1])
        line = " ".join(map(shlex.quote, ["kvtrie", *words]))
        last, before = words[-1], ["kvtrie", *words][-2]
        call = (
            f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE={line!r}\n"
            f"_shtab_kvtrie kvtrie {last} {before} 2> /dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        ran = subprocess.run(["bash", "-c", call], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.stdout.split() == completed

    def test_without_the_package_it_says_how_to_install_it(self):
        call = "import sys; sys.modules['shtab'] = None; from kvtrie.api.cli import main; sys.exit(main())"
        ran = subprocess.run(
            [sys.executable, "-c", call, "completion", "bash"], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 3
        assert ran.stdout == ""
        assert ran.stderr == (
            "kvtrie completion: shell completion needs shtab; install it with: pip install 'kvtrie[all]'\n"
        )
