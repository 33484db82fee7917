"""A case in FlashInfer's page layout, and whether FlashInfer is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers.peer import Planned

SKIP = "KVTRIE_BENCH_SKIP_FLASHINFER"
"""Set, to the reason, by the run whose build of FlashInfer's kernels did not end in time."""
WORKSPACE_BYTES = 512 * 1024**2


def absent(device: torch.device) -> str | None:
    """One line where FlashInfer cannot run here, else None."""
    if os.environ.get(SKIP):
        return os.environ[SKIP]
    try:
        version("flashinfer-python")
        if device.type != "cuda":
            return "FlashInfer runs on a GPU only"
        import flashinfer  # noqa: F401
    except PackageNotFoundError:
        return "flashinfer is not installed: pip install flashinfer-python==0.5.3"
    except Exception as error:
        return f"flashinfer does not import: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return None


def pages_of(case: Case) -> tuple[Tensor, Tensor]:
    """Keys and values `[slots, chunk_tokens, kv_heads, dim]`: one page per slot, copied."""
    keys, values = (part[0].permute(1, 2, 0, 3).contiguous() for part in (case.pool.k, case.pool.v))
    return keys, values


def workspace(device: torch.device) -> Tensor:
    """Scratch memory of the size FlashInfer's planner wants for large batches."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def planned(
    plan: Callable[[], None], run: Callable[[], Tensor], device: torch.device, runs: int = 3
) -> Planned:
    """Plans several times, to know what that takes, and leaves the last plan to `run`."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        plan()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return Planned(run, median(times))


def int32(values: Any, device: torch.device) -> Tensor:
    """Index arrays as FlashInfer takes them."""
    return torch.tensor(values, dtype=torch.int32, device=device)
