"""What the device can do at most: copy bandwidth and dense bf16 matrix products, on random data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from bench.gpu import lines
from bench.gpu.shapes import Ceilings
from bench.gpu.task import Context, Task

H200 = Ceilings(4.3e12, 790e12, measured=False)
"""What one H200 gave elsewhere; stands in where nothing was measured."""


def tasks(context: Context) -> Iterator[Task]:
    """Two."""
    yield Task("bandwidth", lambda: _bandwidth(context))
    yield Task("flops", lambda: _flops(context))


def _bandwidth(context: Context) -> dict[str, Any]:
    count = 2**20 if context.dry else 2**31
    source = torch.empty(count // 2, dtype=torch.float16, device=context.device).normal_()
    target = torch.empty_like(source)
    timing = context.stopwatch.measure(lambda: target.copy_(source))
    moved = 2 * source.numel() * source.element_size()
    return {"bytes": moved, "bytes_per_second": moved / timing.seconds, **asdict(timing)}


def _flops(context: Context) -> dict[str, Any]:
    size = 128 if context.dry else 8192
    left, right = (torch.randn(size, size, device=context.device).to(torch.bfloat16) for _ in range(2))
    timing = context.stopwatch.measure(lambda: left @ right)
    return {"size": size, "flops_per_second": 2 * size**3 / timing.seconds, **asdict(timing)}


def known(context: Context) -> Ceilings:
    """As measured earlier in this run; `H200` where that failed, and in the dry run, whose clock means nothing."""
    found = lines.read(context.folder / "ceilings.jsonl")
    results = [found.get(name, {}).get("result") for name in ("bandwidth", "flops")]
    if context.dry or None in results:
        return H200
    return Ceilings(results[0]["bytes_per_second"], results[1]["flops_per_second"])
