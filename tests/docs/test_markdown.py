"""Markdown that a person reads raw, with links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import DOCS, REPOSITORY

WIDEST = 110
"""Characters of a line, as in code."""

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted(DOCS.glob("*.md")),
]


def _name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_lines_can_be_read_raw(path: Path) -> None:
    wide = [
        f"{path.name}:{number}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > WIDEST and not _cannot_be_wrapped(line)
    ]
    assert not wide, f"wrap at {WIDEST} characters"


def _cannot_be_wrapped(line: str) -> bool:
    """Table rows, quoted messages, and lines that a link alone makes wide."""
    return line.startswith(("|", "> ")) or len(re.sub(r"\]\([^)]*\)", "]", line)) <= WIDEST


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_to_pages_and_headings(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), target
        assert not anchor or anchor in _anchors(found), target


def _anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
