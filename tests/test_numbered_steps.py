"""A function of many branches is read in steps: comments number them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("api", "chunk_kernels", "kvtrie", "prefix_tree", "store")
MOST_BRANCHES = 10
"""Branches of a function that needs no steps, as ruff counts them."""


def complex_functions(*paths: str) -> list[tuple[Path, int]]:
    """File and first line of each function with more branches."""
    asked = [
        *("--isolated", "--select", "C901", "--config", f"lint.mccabe.max-complexity={MOST_BRANCHES}"),
        *("--output-format", "json", "--exit-zero", "--no-cache", "--target-version", "py310"),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *asked, *paths],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [(Path(found["filename"]), found["location"]["row"]) for found in json.loads(ran.stdout)]


def steps(path: Path, row: int) -> list[int]:
    """Numbers of the steps in the function whose name is in this line."""
    text = path.read_text(encoding="utf-8")
    function = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno == row
    )
    lines = text.splitlines()[function.lineno - 1 : function.end_lineno]
    return [int(found[1]) for line in lines if (found := re.match(r"\s+# (\d+)\. [A-Z`]", line))]


def test_functions_of_many_branches_have_numbered_steps() -> None:
    found = complex_functions(*FOLDERS)
    assert len(found) >= 5, "ruff found the functions that are known"
    without = [
        f"{path.relative_to(REPOSITORY)}:{row}"
        for path, row in found
        if (numbers := steps(path, row)) != list(range(1, len(numbers) + 1)) or len(numbers) < 2
    ]
    assert not without, "number their steps in comments, from `# 1. `"


def test_a_function_without_steps_is_found(tmp_path: Path) -> None:
    branches = "".join(f"    if x == {number}:\n        x += 1\n" for number in range(11))
    (tmp_path / "long.py").write_text(f"def long(x):\n{branches}    # 2. Not the first.\n    return x\n")
    ((path, row),) = complex_functions(str(tmp_path))
    assert steps(path, row) == [2]
