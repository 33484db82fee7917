"""The file through which a section's process reports: one JSON object per line, each flushed to disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BEGUN, DONE, FAILED, SKIPPED = "begun", "done", "error", "skipped"


def append(path: Path, task: str, state: str, **entries: Any) -> None:
    """Adds one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"task": task, "state": state, **entries}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each task, in order of first mention. A half-written last line is left out."""
    found: dict[str, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found[entry.pop("task")] = entry
    return found
