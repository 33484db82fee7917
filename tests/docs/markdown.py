"""Reading this repository's Markdown: pages, tables, and text outside of code."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PRODUCT = ("api", "chunk_kernels", "prefix_tree", "store")
"""The folders that are installed."""


def page(name: str) -> str:
    """A page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What is under a heading of level 2, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in `text`; heads and rules left out."""
    tables: list[list[str]] = []
    previous = ""
    for line in text.splitlines():
        if line.startswith("| ") and previous.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
            tables.append([cell.strip() for cell in cells])
        previous = line
    return [row for row in tables if not set(row[0]) <= set("- |")]


def code_in(cell: str) -> list[str]:
    """The names in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def sources() -> list[Path]:
    """Every Python file of the product."""
    return sorted(
        path for folder in PRODUCT for path in (REPOSITORY / folder).rglob("*.py") if path.is_file()
    )
