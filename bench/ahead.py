"""Compiling a Triton kernel for a target that is not there, and looking at what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


@dataclass(frozen=True, slots=True)
class Build:
    """One specialisation of one kernel for one target."""

    target: Target
    kernel: str
    """`attend_items` or `write_kv`."""
    types: dict[str, str]
    """Triton type of each argument that is passed, e.g. `*bf16`; by default `*fp32`, or `i64` if no pointer."""
    constants: dict[str, Any]
    """Values of compile-time arguments; those the kernel does not have are left out."""
    num_warps: int
    num_stages: int
    max_registers: int | None
    tensor_cores: bool
    """Whether it must have tensor-core instructions."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a build needs of the device."""

    registers: int
    shared_bytes: int
    violations: tuple[str, ...]


def compile_ahead(build: Build) -> Compiled:
    """Compiles a build and holds it to its target's limits.

    Raises:
        KeyError: the kernel has a compile-time argument that the build says nothing about.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kvtrie.chunk_kernels.attend_kernel import attend_items
    from kvtrie.chunk_kernels.write_kernel import write_kv

    kernel, target = {"attend_items": attend_items, "write_kv": write_kv}[build.kernel], build.target
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, argument in enumerate(kernel.params):
        name = argument.name
        if argument.is_constexpr:
            signature[name] = "constexpr"
            constants[(place,)] = build.constants[name]
            continue
        signature[name] = build.types.get(name, "*fp32" if name.startswith("p_") else "i64")
        # As a launch finds them: tensors start on 16 bytes, heads and rows are multiples of 16 elements apart.
        if name.startswith("p_") or name.endswith("stride"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        # Fused multiply-adds: the default of 3.6 to 3.9, which 3.9 warns of when it is not said.
        options={
            "num_warps": build.num_warps,
            "num_stages": build.num_stages,
            "enable_fp_fusion": True,
            **({} if build.max_registers is None else {"maxnreg": build.max_registers}),
        },
    )
    look = _look_nvidia if target.backend == "cuda" else _look_amd
    registers, violations = look(compiled.asm, build.tensor_cores)
    shared = compiled.metadata.shared
    if shared > target.shared_bytes:
        violations.append(f"shared {shared} > {target.shared_bytes} bytes")
    return Compiled(registers, shared, tuple(violations))


def _look_nvidia(asm: dict[str, Any], tensor_cores: bool) -> tuple[int, list[str]]:
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
    if tensor_cores and not re.search(r"\b(wgmma\.mma_async|mma\.sync)", asm["ptx"]):
        violations.append("no tensor-core instruction")
    return found["REG"], violations


def _look_amd(asm: dict[str, Any], tensor_cores: bool) -> tuple[int, list[str]]:
    found = {
        name: int(value)
        for name, value in re.findall(
            r"\.(private_segment_fixed_size|vgpr_spill_count|vgpr_count):\s+(\d+)", asm["amdgcn"]
        )
    }
    # Scalar registers spill into lanes of vector registers, which is no memory: they are not counted.
    limited = ("private_segment_fixed_size", "vgpr_spill_count")
    violations = [f"{name} {found[name]}" for name in limited if found[name]]
    if tensor_cores and "v_mfma" not in asm["amdgcn"]:
        violations.append("no matrix instruction")
    return found["vgpr_count"], violations
