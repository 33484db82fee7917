"""The only file here that touches kvtrie's kernels: a shape as pool, sequences and plan, and its attention.

Shapes go through the public way: `ChunkPool`, `StepSequence`, `prepare_step`, `launch_plan`, `attend_triton`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu.shapes import Shape
from kvtrie.chunk_kernels import ChunkPool, StepSequence, attend, prepare_step
from kvtrie.chunk_kernels.attend_triton import attend_triton
from kvtrie.chunk_kernels.launch_plan import launch_plan
from kvtrie.chunk_kernels.tilings import (
    Tiling,
    Tilings,
    TunedTiling,
    cost_model_for,
    pool_formats,
    target_of,
    tilings_for,
    tuned_tilings,
)
from kvtrie.prefix_tree import ChunkShape

MOST_INTERPRETED_TOKENS = 160
"""Token reads, over all requests and KV heads, up to which the dry run interprets the kernel."""


@dataclass(frozen=True, slots=True)
class Case:
    """A shape with random data on a device."""

    shape: Shape
    pool: ChunkPool
    sequences: tuple[StepSequence, ...]
    query: Tensor
    """`[requests * rows, q_heads, dim]`"""
    node_slots: tuple[range, ...]
    """Slots of each node; adjacent."""
    scale: float

    def node_kv(self, node: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a node, views `[kv_heads, tokens, dim]`."""
        slots, tokens = self.node_slots[node], self.shape.tokens[node]
        keys, values = (
            part[0, :, slots.start : slots.stop].flatten(1, 2)[:, :tokens]
            for part in (self.pool.k, self.pool.v)
        )
        return keys, values

    def request_kv(self, request: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all a request reads, `[kv_heads, tokens, dim]`, copied."""
        parts = [self.node_kv(node) for node in self.shape.path(request)]
        return torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)


def build(shape: Shape, device: torch.device, dtype: str, seed: int = 0) -> Case:
    """A pool with the shape's nodes side by side, all filled with noise, and queries."""
    torch.manual_seed(seed)
    chunk = shape.chunk_tokens
    starts = np.cumsum([0, *(-(-tokens // chunk) for tokens in shape.tokens)]).tolist()
    node_slots = tuple(range(a, b) for a, b in pairwise(starts))
    slots = [[slot for node in path for slot in node_slots[node]] for path in shape.paths]
    return _case(shape, slots, starts[-1], node_slots, device, dtype)


def build_unshared(shape: Shape, device: torch.device, dtype: str, like: Case) -> Case:
    """The same numbers with a copy of its own for each request: what paged decoding without sharing reads."""
    chunk = shape.chunk_tokens
    sizes = [-(-length // chunk) for length in shape.lengths]
    starts = np.cumsum([0, *sizes]).tolist()
    slots = [list(range(a, b)) for a, b in pairwise(starts)]
    case = _case(shape, slots, starts[-1], like.node_slots, device, dtype)
    for own, shared in zip(case.sequences, like.sequences):
        for target, source in ((case.pool.k, like.pool.k), (case.pool.v, like.pool.v)):
            target[:, :, own.slots[0] : own.slots[-1] + 1] = source[:, :, list(shared.slots)]
    case.query.copy_(like.query)
    return case


def _case(
    shape: Shape,
    slots: list[list[int]],
    total: int,
    node_slots: tuple[range, ...],
    device: torch.device,
    dtype: str,
) -> Case:
    sizes = ChunkShape(1, shape.kv_heads, shape.chunk_tokens, shape.dim, shape.dim, dtype)
    pool = ChunkPool(sizes, total, device)
    pool.k.normal_()
    pool.v.normal_()
    query = torch.randn(len(slots) * shape.rows, shape.q_heads, shape.dim, device=device).to(pool.dtype)
    sequences = tuple(
        StepSequence(own, length - shape.rows, shape.rows) for own, length in zip(slots, shape.lengths)
    )
    return Case(shape, pool, sequences, query, node_slots, shape.dim**-0.5)


def attention(
    case: Case, choose: Callable[[Any, int], Tilings] | None = None, *, stand_in: bool = True
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Plans the step and returns the call that computes out `[rows, q_heads, dim]` and lse `[rows, q_heads]`.

    Args:
        case: what to attend to.
        choose: tilings for a step and group in place of the device's table.
        stand_in: without a GPU, let the torch path answer for what would take the interpreter long.
    """
    step = prepare_step(case.sequences, case.pool)
    group = case.shape.q_heads // case.shape.kv_heads
    launch = launch_plan(step, group, (choose or tilings_for)(step, group), cost_model_for(case.pool.device))
    if stand_in and not launched(case):
        return lambda: attend(case.query, case.pool, 0, step, case.scale)
    return lambda: attend_triton(case.query, case.pool, 0, launch, case.scale)


def launched(case: Case) -> bool:
    """Whether the kernel itself runs: always on a GPU, and interpreted where a shape is small enough."""
    if case.pool.device.type == "cuda":
        return True
    reads = sum(case.shape.lengths) * case.shape.rows * case.shape.kv_heads
    return reads <= MOST_INTERPRETED_TOKENS


def plan_seconds(case: Case, runs: int = 5) -> float:
    """Median host time of `prepare_step` and `launch_plan`, upload included."""
    group = case.shape.q_heads // case.shape.kv_heads
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        step = prepare_step(case.sequences, case.pool)
        launch_plan(step, group, tilings_for(step, group), cost_model_for(case.pool.device))
        _wait(case.pool.device)
        times.append(time.perf_counter() - begun)
    return median(times)


def chosen(takes: Callable[[int], bool], tiling: Tiling) -> Callable[[Any, int], Tilings]:
    """A step's tilings, with `tiling` in the launches whose (row, group head) pairs are taken."""

    def choose(step: Any, group: int) -> Tilings:
        usual = tilings_for(step, group)
        most_rows = max(sequence.rows for sequence in step.sequences)
        return Tilings(
            partial=tiling if takes(step.rows * group) else usual.partial,
            finish=tiling if takes(most_rows * group) else usual.finish,
        )

    return choose


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


__all__ = [
    "Case",
    "Tiling",
    "Tilings",
    "TunedTiling",
    "attention",
    "build",
    "build_unshared",
    "chosen",
    "launched",
    "plan_seconds",
    "pool_formats",
    "target_of",
    "tuned_tilings",
]
