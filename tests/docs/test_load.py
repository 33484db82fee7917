"""`docs/load.md` tells of every option, workload and failure of `kvtrie bench serve`, and its commands parse."""

from __future__ import annotations

import argparse
import re
import shlex

from kvtrie.api.cli import bench_serve
from kvtrie.api.load import outcome, workload_files
from kvtrie.api.load.workloads import SHOTS, WORKLOADS
from tests.docs.markdown import code_in, page, rows, section

PAGE = page("load.md")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(exit_on_error=False)
    bench_serve.add_arguments(found)
    return found


def test_every_option_is_told_of_and_every_one_told_of_exists() -> None:
    options = {
        name for action in parser()._actions for name in action.option_strings if name.startswith("--")
    }
    told = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - {"--vllm-python"}
    assert told <= options
    assert options - told == {"--help"}


def test_commands_parse() -> None:
    commands = re.findall(
        r"^    kvtrie bench serve (.*?)(?: +#.*)?$", PAGE.replace("\\\n", " "), re.MULTILINE
    )
    assert len(commands) > 6
    for command in commands:
        parser().parse_args(shlex.split(command))


def test_examples_of_the_command_parse() -> None:
    for example in bench_serve.EXAMPLES:
        parser().parse_args(shlex.split(example.removeprefix("kvtrie bench serve")))


def test_every_workload_with_its_files() -> None:
    table = {code_in(cells[0])[0]: cells for cells in rows(section(PAGE, "What is sent"))}
    assert set(table) == set(WORKLOADS)
    files = {name for cells in table.values() for name in code_in(cells[2])}
    named = ("SYSTEM_PROMPTS", "CHATS", "EXAMPLES", "QUESTIONS", "SEARCHES", "SEARCH_PROMPTS")
    assert files == {getattr(workload_files, name) for name in named}
    assert f"| {SHOTS} examples" in PAGE


def test_every_kind_of_failure() -> None:
    told = next(cells[1] for cells in rows(section(PAGE, "What each figure means")) if cells[0] == "failed")
    kinds = (outcome.NO_CONNECTION, outcome.CUT, outcome.MALFORMED, outcome.ERROR_EVENT, outcome.TIMED_OUT)
    assert {"HTTP 429", *kinds} <= set(code_in(told))
