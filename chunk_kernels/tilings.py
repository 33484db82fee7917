"""Which tiling ships for which target: committed tables under `tuned/`, one per architecture.

A table is a list from narrow to wide; the first row that fits a launch is taken. `python -m bench.kernels`
compiles every row ahead of time for its target and fails on any that spills or does not fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.step import Step
from kvtrie.chunk_kernels.work_split import CostModel
from kvtrie.prefix_tree.errors import InputError

TABLES = Path(__file__).parent / "tuned"
FALLBACK = "sm_80"
"""The table for devices that have none of their own: the tightest of the NVIDIA ones."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a tile is computed, for one device and shape."""

    block_m: int = 16
    """(row, group head) pairs per tile: 16 or more, a power of two."""
    block_n: int = 64
    """Tokens per inner step, a power of two."""
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None
    """Per thread, on NVIDIA. If None, the assembler may spill a few bytes to the stack to run more programs per
    processor."""


@dataclass(frozen=True, slots=True)
class Tilings:
    """How a step's two launches are tiled."""

    partial: Tiling = Tiling()
    """Shared runs, with the rows of all their readers, and pieces of long private runs."""
    finish: Tiling = Tiling()
    """Each sequence's own rows."""


@dataclass(frozen=True, slots=True)
class TunedTiling:
    """One row of a table."""

    dtype: str
    most_dim: int
    """Largest of key and value dim it is for."""
    most_pairs: int | None
    """Most (row, group head) pairs per reader set it is for; None for any number."""
    tiling: Tiling


@cache
def tuned_tilings(target: str) -> tuple[TunedTiling, ...]:
    """The table of a target, e.g. `sm_90`.

    Raises:
        InputError: there is no table of that name.
    """
    rows = []
    for row in _table(target)["tilings"]:
        keys = (row.pop("dtype"), row.pop("most_dim"), row.pop("most_pairs"))
        rows.append(TunedTiling(*keys, Tiling(**row)))
    return tuple(rows)


def pool_formats(target: str) -> tuple[str, ...]:
    """The `kv_format`s whose kernels ship for a target: `raw`, and those of quantised pools.

    Raises:
        InputError: there is no table of that name.
    """
    return tuple(_table(target)["pool_formats"])


def _table(target: str) -> dict[str, Any]:
    path = TABLES / f"{target}.json"
    if not path.is_file():
        raise InputError(
            f"no tilings for {target!r}; there are {sorted(p.stem for p in TABLES.glob('*.json'))}"
        )
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def tiling_for(target: str, dtype: str, dim: int, pairs: int) -> Tiling:
    """The tiling for heads of `dim` and tiles of about `pairs` (row, group head) pairs.

    Raises:
        InputError: no row is wide enough.
    """
    for row in tuned_tilings(target):
        if row.dtype == dtype and dim <= row.most_dim and (row.most_pairs is None or pairs <= row.most_pairs):
            return row.tiling
    raise InputError(f"no tiling on {target} for {dtype} heads of dim {dim}; see chunk_kernels/tuned/")


def tilings_for(step: Step, group: int) -> Tilings:
    """Tilings of a step's two launches on the device of its pool."""
    most_rows = max(sequence.rows for sequence in step.sequences)
    return tilings_of(step.pool, step.rows, most_rows, group)


def tilings_of(pool: ChunkPool, rows: int, most_rows: int, group: int) -> Tilings:
    """Tilings for steps of `rows` rows, at most `most_rows` of one sequence, `group` query heads per KV head."""
    shape = pool.shape
    target, dim = target_of(pool.device), max(shape.key_dim, shape.value_dim)
    return Tilings(
        partial=tiling_for(target, shape.dtype, dim, rows * group),
        finish=tiling_for(target, shape.dtype, dim, most_rows * group),
    )


@cache
def cost_model_for(device: torch.device) -> CostModel:
    """Costs of launches and pieces on a device; the defaults if it does not report its processors."""
    if device.type != "cuda":
        return CostModel()
    return CostModel(processors=torch.cuda.get_device_properties(device).multi_processor_count)


def target_of(device: torch.device) -> str:
    """The table name of a device; `FALLBACK` for one without a table, and for the interpreter."""
    if device.type != "cuda":
        return FALLBACK
    properties = torch.cuda.get_device_properties(device)
    name = getattr(properties, "gcnArchName", "").split(":")[0] or f"sm_{properties.major}{properties.minor}"
    return name if (TABLES / f"{name}.json").is_file() else FALLBACK
