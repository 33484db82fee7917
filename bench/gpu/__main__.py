"""The one GPU script: correctness gate, ceilings, the grid with its peers, serving; JSON, a table and plots.

A bare machine needs torch, triton, transformers and pytest. `--dry` goes through all of it on a CPU, scaled down.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.gpu.budget import Budget

RESULTS = Path(__file__).resolve().parents[1] / "results"
SECTIONS = ("gate", "ceilings", "grid", "serve")
SERVE_SECONDS = 150.0
"""Kept for serving while the grid runs."""
INSTALL = "pip install --no-deps --no-build-isolation -e ."


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m bench.gpu`; 1 where a gate is red, 2 where nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--dry", action="store_true", help="no GPU: scaled-down shapes, interpreted or on the CPU"
    )
    parser.add_argument("--budget-seconds", type=float, default=510.0, help="rows beyond it are skipped")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument(
        "--output", type=Path, help=f"folder for JSON and plots; default {RESULTS}, a new one if dry"
    )
    parser.add_argument("--commit", help="what to record where there is no git to ask")
    args = parser.parse_args(argv)
    wanted = args.only.split(",")
    if unknown := sorted({*wanted} - {*SECTIONS}):
        parser.error(f"--only {','.join(unknown)}: sections are {', '.join(SECTIONS)}")
    try:
        import kvtrie.prefix_tree  # noqa: F401
    except ModuleNotFoundError as missing:
        print(f"{missing}; if kvtrie is not installed, run in the checkout: {INSTALL}", file=sys.stderr)
        return 2
    if args.dry:
        # Before Triton is imported anywhere, and inherited by every process.
        os.environ["TRITON_INTERPRET"] = "1"
        # On tiny shapes threads only wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        import torch

        if not torch.cuda.is_available():
            print(
                "torch sees no GPU here; `python -m bench.gpu --dry` goes through it without one",
                file=sys.stderr,
            )
            return 2
    budget = Budget.of(args.budget_seconds)
    output = args.output or (Path(tempfile.mkdtemp(prefix="kvtrie-gpu-dry-")) if args.dry else RESULTS)
    return _run(wanted, output, budget, args.dry, args.commit)


def _run(wanted: list[str], output: Path, budget: Budget, dry: bool, commit: str | None) -> int:
    from bench.gpu import gate, machine, report, sections
    from bench.gpu.shapes import DRY

    described = machine.describe(commit)
    kind = "gpu-dry" if dry else "gpu"
    commit_name = described["commit"].replace("+", "-")
    path = output / f"{kind}-{described['date'][:10]}-{commit_name}.json"
    settings: dict[str, Any] = {"budget_seconds": round(budget.left), "dry": dry, "sections": wanted}
    if dry:
        settings["scaled"] = (
            f"node tokens / {DRY.tokens_divisor}, nodes per level / {DRY.requests_divisor}, heads / "
            f"{DRY.heads_divisor}, dim {DRY.dim}; times mean nothing"
        )
    found: dict[str, report.Entries] = {}
    build = _flashinfer_build() if "grid" in wanted and not dry else None
    output.mkdir(parents=True, exist_ok=True)
    try:
        # Beside the results: what the rows of a section said is there even if this process is killed.
        with tempfile.TemporaryDirectory(prefix="lines-", dir=output) as folder:
            for section in SECTIONS:
                if section not in wanted:
                    continue
                if found.get("gate") and gate.verdict(found["gate"])[0] == "red":
                    settings["stopped"] = "the correctness gate is red: nothing was timed"
                    break
                if section != "gate" and "flashinfer_build" not in settings:
                    # Before anything is timed, for the two would share the device.
                    settings["flashinfer_build"] = _await_build(build, budget)
                kept = SERVE_SECONDS if section == "grid" and "serve" in wanted and not dry else 0.0
                print(f"== {section}, {budget.left:.0f} s left", flush=True)
                found[section] = sections.run(section, Path(folder), budget.minus(kept), dry=dry)
                settings["seconds_left"] = round(budget.left)
                report.write(path, report.assemble(described, settings, found))
    finally:
        if build is not None and build.poll() is None:
            _end(build)
    document = report.assemble(described, settings, found)
    report.write(path, document)
    print(report.table(document))
    if "stopped" in settings:
        print(settings["stopped"])
    print(f"written to {path}")
    _plot(path)
    serving_failed = any(way.get("ok") is False for way in document.get("serve", {}).get("ways", {}).values())
    red = document.get("gate", {}).get("verdict") == "red"
    # On a GPU a failed row is a finding; in the dry run it is a fault of this script.
    failed = report.errors(found)
    for name, why in failed:
        print(f"failed: {name}: {why}")
    return 1 if red or serving_failed or (dry and failed) else 0


def _flashinfer_build() -> subprocess.Popen[bytes] | None:
    try:
        version("flashinfer-python")
    except PackageNotFoundError:
        return None
    # A group of its own, so that the compilers it starts end with it.
    return subprocess.Popen([sys.executable, "-m", "bench.gpu.peers.flashinfer_build"], preexec_fn=os.setpgrp)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _await_build(build: subprocess.Popen[bytes] | None, budget: Budget) -> str:
    """Waits for FlashInfer's kernels, for a quarter of what is left; without them the grid goes on without it."""
    from bench.gpu.peers.flashinfer_pages import SKIP

    if build is None:
        return "not asked for, or FlashInfer is not installed"
    try:
        code = build.wait(max(1.0, budget.left / 4))
    except subprocess.TimeoutExpired:
        _end(build)
        said = "its kernels were not built in time"
    else:
        if code == 0:
            return "built"
        said = f"building its kernels failed ({code}); see the output"
    os.environ[SKIP] = said
    return said


def _plot(path: Path) -> None:
    from bench.gpu import plots

    try:
        for drawn in plots.draw(path):
            print(f"drawn {drawn}")
    except ModuleNotFoundError as missing:
        print(f"no plots: {missing}")


if __name__ == "__main__":
    sys.exit(main())
