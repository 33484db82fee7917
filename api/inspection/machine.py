"""Packages, devices and programs of this machine that kvtrie can use, found without heavy imports.

torch alone takes seconds to import, so versions are read from package metadata, and torch is imported
only where the machine has a GPU to ask it about.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kvtrie.api.inspection.version_range import VersionRange, ranges_tested

PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Package:
    """A package kvtrie can use."""

    name: str
    is_core: bool
    """Whether kvtrie does not work without it."""
    what_for: str


PACKAGES = (
    Package("numpy", True, "everything"),
    Package("sortedcontainers", True, "the tree"),
    Package("torch", True, "models and attention"),
    Package("xxhash", True, "chunk keys"),
    Package("triton", False, "the GPU kernels; comes with torch for GPUs"),
    Package("transformers", False, "PrefixCachedModel, tokenizers by name"),
    Package("huggingface-hub", False, "models and tokenizers by name"),
    Package("tokenizers", False, "tokenizers by file"),
    Package("peft", False, "adapters of a wrapped model"),
    Package("mistral-common", False, "tekken tokenizers"),
    Package("redis", False, "a Redis store"),
    Package("hiredis", False, "a faster Redis store"),
    Package("fastapi", False, "the sidecar"),
    Package("starlette", False, "the sidecar"),
    Package("anyio", False, "the sidecar"),
    Package("uvicorn", False, "the sidecar"),
    Package("httpx", False, "the sidecar's client"),
    Package("rich", False, "the progress of `kvtrie trace simulate`"),
    Package("shtab", False, "`kvtrie completion`"),
    Package("matplotlib", False, "`kvtrie trace simulate --plot`"),
)
"""Packages kvtrie can use; `tested_versions.json` has each."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `machine_findings` looked for."""

    name: str
    found: str
    """Version, name or place of it; empty if it is missing."""
    is_ok: bool
    is_needed: bool
    """Whether the core does not work without it, or it was asked for."""
    remedy: str
    """How to install or mend it; empty if nothing is wrong."""
    note: str = ""
    """How a package's version compares to the tested ones; empty if it is one of them."""


def machine_findings() -> list[Finding]:
    """Findings on Python, the platform, packages, compute paths and programs. Leaves no process running."""
    torch, system, tested = installed_version("torch"), platform.uname(), ranges_tested()
    return [
        _python(),
        Finding("platform", " ".join((system.system, system.release, system.machine)), True, False, ""),
        Finding("cores", str(_cores()), True, False, ""),
        Finding("memory", _memory(), True, False, ""),
        *(_package(package, tested[package.name]) for package in PACKAGES),
        _cpu_path(torch),
        _gpu(torch),
        _redis_server(),
    ]


def _python() -> Finding:
    is_ok = sys.version_info >= (3, 10)
    remedy = "" if is_ok else "install Python 3.10 or newer"
    return Finding("python", platform.python_version(), is_ok, True, remedy)


def _cores() -> int:
    # A container may use fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        size_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size_bytes / (1 << 30):.1f} GiB"


def installed_version(package: str) -> str | None:
    """The version of an installed package, from its metadata; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(package: Package, tested: VersionRange) -> Finding:
    version = installed_version(package.name)
    wanted = f"'{package.name}>={tested.oldest}'"
    if version is None:
        remedy = f"pip install {wanted}   # for {package.what_for}"
        return Finding(package.name, "", False, package.is_core, remedy)
    if tested.is_older(version):
        remedy = f"pip install -U {wanted}"
        return Finding(package.name, version, False, package.is_core, remedy, f"older than tested ({tested})")
    note = f"newer than tested ({tested})" if tested.is_newer(version) else ""
    return Finding(package.name, version, True, package.is_core, "", note)


def _cpu_path(torch: str | None) -> Finding:
    is_there = importlib.util.find_spec("kvtrie.chunk_kernels") is not None
    is_ok = is_there and torch is not None
    if is_ok:
        return Finding("cpu path", "two-phase attention in torch", True, True, "")
    remedy = "pip install torch" if is_there else "reinstall kvtrie: kvtrie.chunk_kernels is missing"
    return Finding("cpu path", "", False, True, remedy)


def _gpu(torch: str | None) -> Finding:
    """The GPU that torch can use, or why it cannot."""
    # 1. Is there a device?
    is_nvidia, is_amd = bool(glob.glob("/dev/nvidia[0-9]*")), Path("/dev/kfd").exists()
    if not is_nvidia and not is_amd:
        return Finding("gpu", "", False, False, "none on this machine; the CPU path is used")
    name = (_nvidia_name() if is_nvidia else "") or ("NVIDIA GPU" if is_nvidia else "AMD GPU")
    if torch is None:
        return Finding("gpu", name, False, False, "pip install torch")
    # 2. Can torch use it?
    try:
        import torch as pytorch

        if pytorch.cuda.is_available():
            kind = "ROCm" if pytorch.version.hip else "CUDA"
            runtime = pytorch.version.hip or pytorch.version.cuda
            return Finding("gpu", f"{pytorch.cuda.get_device_name(0)}, {kind} {runtime}", True, False, "")
    # A driver and a runtime that do not match fail in many ways; each is a finding, not an error.
    except Exception as error:
        return Finding("gpu", name, False, False, f"torch cannot use it: {error}")
    # 3. It cannot: this torch was built for another kind of device, or for none.
    build = "ROCm" if is_amd and not is_nvidia else "CUDA"
    return Finding("gpu", name, False, False, f"torch {torch} cannot use it; install torch built for {build}")


def _nvidia_name() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return lines[0].strip() if lines else ""


def _redis_server() -> Finding:
    found = shutil.which("redis-server")
    remedy = "" if found else "apt-get install redis-server   # only for a Redis store on this machine"
    return Finding("redis-server", found or "", found is not None, False, remedy)
