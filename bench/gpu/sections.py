"""Runs a section's process, and starts another where it died, until all its tasks are accounted for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import lines
from bench.gpu.budget import Budget

MOST_STARTS = 6
GRACE_SECONDS = 10.0
"""A task begun within the budget may take this long beyond it before its process is killed."""
WORKER = ("-m", "bench.gpu.worker")


def run(
    section: str, folder: Path, budget: Budget, *, dry: bool, worker: Sequence[str] = WORKER
) -> dict[str, dict[str, Any]]:
    """Every task's last line: `state` with `result` or `reason`.

    Args:
        section: module under `bench.gpu`.
        folder: where its lines go, `SECTION.jsonl`.
        budget: when to stop.
        dry: see `task.Context`.
        worker: what Python is told to run.
    """
    path = folder / f"{section}.jsonl"
    command = [
        sys.executable,
        *worker,
        section,
        str(path),
        "--ends-at",
        str(budget.ends_at),
        *["--dry"] * dry,
    ]
    ended = ""
    for _ in range(MOST_STARTS):
        before = len(lines.read(path))
        ended = _process(command, max(1.0, budget.left + GRACE_SECONDS))
        found = lines.read(path)
        for name, entry in found.items():
            if entry["state"] == lines.BEGUN:
                lines.append(path, name, lines.FAILED, reason=f"its process {ended}")
        if not ended:
            return lines.read(path)
        if len(found) == before or budget.left < 0:
            break
    lines.append(path, f"{section}, the rest", lines.FAILED, reason=f"not run: the section's process {ended}")
    return lines.read(path)


def _process(command: list[str], seconds: float) -> str:
    """Runs it to its end; empty where that was a good one, else how it ended."""
    # A group of its own, so that what it started (the tests) ends with it.
    process = subprocess.Popen(command, preexec_fn=os.setpgrp)
    try:
        code = process.wait(seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return "was killed at the end of the budget"
    return f"ended with {code}" if code else ""
