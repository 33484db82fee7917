"""`docs/design.md` is about this repository: its rooms, its files, its words."""

from __future__ import annotations

import re
import sys

import pytest

from tests.docs.markdown import DOCS, REPOSITORY, page, rows

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = page("design.md")
FOLDERS = r"(?:api|bench|chunk_kernels|docs|examples|kvtrie|prefix_tree|requirements|store|tests)"


def test_the_rooms_are_those_that_the_linter_holds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["name"] == "the rooms of api"
    )
    shown = PAGE.partition("lines below\ntheir own:\n\n")[2].partition("\n\n")[0].splitlines()
    # A line that is indented further continues the one before.
    rooms = [re.split(r"\s{2,}", line.strip())[0] for line in shown if not line.startswith(" " * 5)]
    assert rooms == [layer.replace("kvtrie.api.", "") for layer in layers]


def test_every_room_is_a_line() -> None:
    folders = {path.parent.name for path in (REPOSITORY / "api").glob("*/__init__.py")}
    files = {path.stem for path in (REPOSITORY / "api").glob("*.py")} - {"__init__"}
    shown = PAGE.partition("lines below\ntheir own:\n\n")[2].partition("\n\n")[0]
    first = " ".join(line[:38] for line in shown.splitlines())
    # Beside the layers, not in them: both are told of below the list.
    assert set(re.findall(r"\w+", first)) == (folders | files) - {"testing", "moved"}
    assert "`api/testing/`" in PAGE and "`api/moved.py`" in PAGE


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path) -> None:
    named = re.findall(rf"(?<![\w/.<-]){FOLDERS}/[\w./*-]*\w", path.read_text(encoding="utf-8"))
    missing = [name for name in named if not list(REPOSITORY.glob(name))]
    assert not missing


def test_every_word_has_a_meaning() -> None:
    glossary = rows(PAGE.partition("## Folders")[0])
    assert all(len(cells) == 3 and cells[1] for cells in glossary)
    words = {word for cells in glossary for word in cells[0].split(", ")}
    wanted = (
        "KV chunk node path leaf root graft run column slot lease pin hold claim pending published tier residence "
        "record partial scope share quota policy ghost tombstone namespace sequence row step"
    )
    assert set(wanted.split()) <= words
