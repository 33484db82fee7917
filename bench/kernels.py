"""Compiles every shipped tiling ahead of time for its target: proof without a GPU.

`make kernels` prints one row per tiling and exits with 1 where a kernel needs stack or local memory, more shared
memory than the target has, or does without tensor cores where the dtype has them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtrie.chunk_kernels.tilings import TunedTiling, tuned_tilings


@dataclass(frozen=True, slots=True)
class Target:
    """What Triton compiles for."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    """Most shared memory one program may use."""


TARGETS = (
    Target("sm_80", "cuda", 80, 32, 163 * 1024),
    Target("sm_90", "cuda", 90, 32, 227 * 1024),
    Target("gfx942", "hip", "gfx942", 64, 64 * 1024),
)
_TRITON_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_INT32 = ("items", "counts", "slots", "order", "merge_index", "merges")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel, compiled."""

    target: str
    row: str
    registers: int
    shared_bytes: int
    violations: tuple[str, ...]


def compile_row(target: Target, row: TunedTiling, stores_partial: bool) -> Compiled:
    """Compiles one tiling for one target and looks at what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvtrie.chunk_kernels.attend_kernel import attend_items

    cut, names = row.tiling, attend_items.arg_names
    constants: dict[str, Any] = {
        "STORES_PARTIAL": stores_partial,
        "KV_HEADS": 8,
        "GROUP": 4,
        "CHUNK": 64,
        "KEY_DIM": row.most_dim,
        "VALUE_DIM": row.most_dim,
        "BLOCK_KEY_DIM": triton.next_power_of_2(row.most_dim),
        "BLOCK_VALUE_DIM": triton.next_power_of_2(row.most_dim),
        "BLOCK_M": cut.block_m,
        "BLOCK_N": cut.block_n,
        "HAS_WINDOW": False,
        "HAS_SOFTCAP": False,
        "HAS_ALIBI": False,
        "HAS_SINKS": False,
        "QUANTISED": False,
        "PRECISION": "tf32x3" if row.dtype == "float32" and target.backend == "cuda" else "ieee",
    }
    signature = {name: _type_of(name, row.dtype, constants) for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name.startswith("p_") or name.endswith("stride")
    }
    source = ASTSource(attend_items, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    kernel = triton.compile(
        source,
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options={"num_warps": cut.num_warps, "num_stages": cut.num_stages},
    )
    registers, violations = (_look_nvidia if target.backend == "cuda" else _look_amd)(kernel.asm, row.dtype)
    if kernel.metadata.shared > target.shared_bytes:
        violations.append(f"shared {kernel.metadata.shared} > {target.shared_bytes}")
    phase = "partial" if stores_partial else "finish"
    label = (
        f"{row.dtype:8} dim {row.most_dim:3}  m {cut.block_m:2} n {cut.block_n:2}  "
        f"warps {cut.num_warps} stages {cut.num_stages}  {phase}"
    )
    return Compiled(target.name, label, registers, kernel.metadata.shared, tuple(violations))


def _type_of(name: str, dtype: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in ("p_query", "p_key", "p_value", "p_out"):
        return "*" + _TRITON_DTYPES[dtype]
    if name == "p_positions":
        return "*i64"
    if name.startswith("p_"):
        return "*i32" if name.removeprefix("p_") in _INT32 else "*fp32"
    return {"scale": "fp32", "softcap": "fp32", "window": "i32"}.get(name, "i64")


def _look_nvidia(asm: dict[str, Any], dtype: str) -> tuple[int, list[str]]:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        said = subprocess.run(
            [cuobjdump, "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
    violations = [f"{name.lower()} {found[name]} bytes" for name in ("STACK", "LOCAL") if found[name]]
    if not re.search(r"\b(wgmma\.mma_async|mma\.sync)", asm["ptx"]):
        violations.append(f"no tensor-core instruction for {dtype}")
    return found["REG"], violations


def _look_amd(asm: dict[str, Any], dtype: str) -> tuple[int, list[str]]:
    found = {
        name: int(value)
        for name, value in re.findall(
            r"\.(private_segment_fixed_size|vgpr_spill_count|sgpr_spill_count|vgpr_count):\s+(\d+)",
            asm["amdgcn"],
        )
    }
    violations = [
        f"{name} {found[name]}" for name in ("private_segment_fixed_size", "vgpr_spill_count") if found[name]
    ]
    # fp32 is exact there (ieee), which has no matrix instruction to ask for.
    if dtype != "float32" and "v_mfma" not in asm["amdgcn"]:
        violations.append(f"no matrix instruction for {dtype}")
    return found["vgpr_count"], violations


def main() -> int:
    """Entry point of `python -m bench.kernels`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="one target only")
    args = parser.parse_args()
    jobs = [
        (target, row, stores_partial)
        for target in TARGETS
        if args.target in (None, target.name)
        for row in tuned_tilings(target.name)
        # fp16 and bf16 compile alike; one of them per shape is proof enough, and half the time.
        if row.dtype != "float16"
        for stores_partial in (True, False)
    ]
    with ProcessPoolExecutor(max_workers=2) as processes:
        results = list(processes.map(compile_row, *zip(*jobs)))
    for result in results:
        verdict = "; ".join(result.violations) or "ok"
        print(
            f"{result.target:7} {result.row:58} {result.registers:4} reg {result.shared_bytes:7} B  {verdict}"
        )
    bad = sum(bool(result.violations) for result in results)
    print(f"{len(results)} kernels, {bad} with violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
