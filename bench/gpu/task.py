"""What a section is made of: tasks that may fail alone, and what they run with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.gpu.budget import Budget
from bench.gpu.stopwatch import CudaStopwatch, DryStopwatch, Stopwatch


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to find out."""

    name: str
    run: Callable[[], dict[str, Any]]
    needs_seconds: float = 2.0
    """Skipped when less of the budget is left."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a section runs with."""

    device: torch.device
    dry: bool
    """Shapes scaled down, nothing launched on a device."""
    budget: Budget
    folder: Path
    """Where sections leave their lines, so that later ones find earlier ones' figures."""
    stopwatch: Stopwatch

    @property
    def dtype(self) -> str:
        """What the grid is timed in; the interpreter's bf16 products are garbage, so the dry run takes fp16."""
        return "float16" if self.dry else "bfloat16"


class Section(Protocol):
    """A module with tasks."""

    def tasks(self, context: Context) -> Iterator[Task]:
        """In the order in which they matter."""


def make_context(dry: bool, ends_at: float, folder: Path) -> Context:
    """For this process.

    Raises:
        SystemExit: a run that is not dry, without a GPU.
    """
    if dry:
        return Context(torch.device("cpu"), True, Budget(ends_at), folder, DryStopwatch())
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; python -m bench.gpu --dry runs without one")
    device = torch.device("cuda", 0)
    return Context(device, False, Budget(ends_at), folder, CudaStopwatch(device))
