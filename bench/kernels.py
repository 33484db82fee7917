"""Compiles every shipped tiling ahead of time for its target: proof without a GPU.

`make kernels` prints one line per tiling, head dims (key/value) and launch, with the registers of each build:

    plain ........ nothing but softmax
    all .......... sliding window, softcap, ALiBi and sinks at once
    int8, fp8 .... the same tiling over a quantised pool, where the target's table ships that format

and one line per KV write. It exits with 1 where a build needs stack or local memory, spills, wants more shared
memory than the target has, or does without tensor cores where the dtype has them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import triton

from bench.ahead import TARGETS, Build, Target, compile_ahead
from kvtrie.chunk_kernels.quantise import LARGEST
from kvtrie.chunk_kernels.tilings import TunedTiling, pool_formats, tuned_tilings

PROCESSES = 2
HEAD_DIMS = ((64, 64), (80, 80), (128, 128), (192, 128), (192, 192), (256, 256))
"""(key dim, value dim) of the models there are; 96 compiles as 80 does, in the same blocks."""
_TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "int8": "*i8", "fp8": "*fp8e4nv"}
_INT32 = ("items", "counts", "slots", "order", "merge_index", "merges")
_VARIANTS = ("HAS_WINDOW", "HAS_SOFTCAP", "HAS_ALIBI", "HAS_SINKS")


@dataclass(frozen=True, slots=True)
class Entry:
    """One build and where it stands in the table."""

    line: str
    column: str
    build: Build


def entries_of(target: Target) -> Iterator[Entry]:
    """Everything that ships for a target."""
    # fp16 and bf16 compile alike; one of them is proof enough, and half the time.
    rows = [row for row in tuned_tilings(target.name) if row.dtype != "float16"]
    for row in rows:
        narrower = max(
            (r.most_dim for r in rows if r.dtype == row.dtype and r.most_dim < row.most_dim), default=0
        )
        for dims in HEAD_DIMS:
            if narrower < max(dims) <= row.most_dim:
                yield from attend_entries(target, row, dims)
    for dtype in sorted({row.dtype for row in rows}):
        for dims in HEAD_DIMS:
            yield from _write_entries(target, dtype, dims)


def attend_entries(target: Target, row: TunedTiling, dims: tuple[int, int]) -> Iterator[Entry]:
    """Every build of a tiling for heads of `dims` (key, value)."""
    cut = row.tiling
    on_nvidia = target.backend == "cuda"
    builds = [("plain", False, "raw"), ("all", True, "raw")]
    builds += [(name, False, name) for name in pool_formats(target.name) if name != "raw"]
    for launch in ("partial", "finish"):
        line = (
            f"{target.name:6} {row.dtype:8} dims {dims[0]:3}/{dims[1]:<3}  m {cut.block_m:2} n {cut.block_n:2} "
            f"warps {cut.num_warps} stages {cut.num_stages}  {launch:7}"
        )
        for column, everything, pool_format in builds:
            stored = row.dtype if pool_format == "raw" else pool_format
            types = dict.fromkeys((f"p_{name}" for name in _INT32), "*i32")
            types |= dict.fromkeys(("p_query", "p_out"), _TYPES[row.dtype])
            types |= dict.fromkeys(("p_key", "p_value"), _TYPES[stored])
            types |= {"p_positions": "*i64", "scale": "fp32", "softcap": "fp32", "window": "i32"}
            constants = {
                "STORES_PARTIAL": launch == "partial",
                "KV_HEADS": 8,
                "GROUP": 4,
                "CHUNK": 64,
                **_dim_constants(dims),
                "BLOCK_M": cut.block_m,
                "BLOCK_N": cut.block_n,
                **dict.fromkeys(_VARIANTS, everything),
                "QUANTISED": pool_format != "raw",
                "PRECISION": "tf32x3" if row.dtype == "float32" and on_nvidia else "ieee",
            }
            # fp32 is exact on AMD (ieee), which has no matrix instruction to ask for.
            tensor_cores = on_nvidia or row.dtype != "float32"
            yield Entry(
                line,
                column,
                Build(
                    target,
                    "attend_items",
                    types,
                    constants,
                    cut.num_warps,
                    cut.num_stages,
                    cut.max_registers,
                    tensor_cores,
                ),
            )


def _write_entries(target: Target, dtype: str, dims: tuple[int, int]) -> Iterator[Entry]:
    line = f"{target.name:6} {dtype:8} dims {dims[0]:3}/{dims[1]:<3}  write"
    for pool_format in pool_formats(target.name):
        is_raw = pool_format == "raw"
        types = dict.fromkeys(("p_new_key", "p_new_value"), _TYPES[dtype])
        types |= dict.fromkeys(("p_key", "p_value"), _TYPES[dtype if is_raw else pool_format])
        types["p_write_at"] = "*i64"
        constants = {
            **_dim_constants(dims),
            "QUANTISED": not is_raw,
            "LARGEST": LARGEST.get(pool_format, 0.0),
        }
        column = "plain" if is_raw else pool_format
        yield Entry(line, column, Build(target, "write_kv", types, constants, 1, 1, None, False))


def _dim_constants(dims: tuple[int, int]) -> dict[str, int]:
    return {
        "KEY_DIM": dims[0],
        "VALUE_DIM": dims[1],
        "BLOCK_KEY_DIM": triton.next_power_of_2(dims[0]),
        "BLOCK_VALUE_DIM": triton.next_power_of_2(dims[1]),
    }


def main() -> int:
    """Entry point of `python -m bench.kernels`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="one target only")
    args = parser.parse_args()
    entries = [
        entry for target in TARGETS if args.target in (None, target.name) for entry in entries_of(target)
    ]
    print(f"Triton {triton.__version__}; registers of each build")
    bad, line = 0, ""
    # A cache of its own, so that every run compiles; kernels, not their interpreted stand-ins.
    with tempfile.TemporaryDirectory(prefix="kvtrie-triton-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        os.environ.pop("TRITON_INTERPRET", None)
        with ProcessPoolExecutor(PROCESSES) as processes:
            for entry, found in zip(entries, processes.map(compile_ahead, [e.build for e in entries])):
                if entry.line != line:
                    print(f"\n{entry.line:58}", end="")
                    line = entry.line
                print(f"  {entry.column} {found.registers:3}", *found.violations, end="", flush=True)
                bad += bool(found.violations)
    print(f"\n{len(entries)} kernels, {bad} with violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
