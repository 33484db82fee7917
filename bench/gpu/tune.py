"""Chooses tilings by measurement: `python -m bench.gpu.tune` writes `chunk_kernels/tuned/<device>.json`.

Only candidates that compile clean for the device (no spill, no local memory, shared memory within limits) are
timed, on a few shapes per class; the best geometric mean against the committed row wins, if it wins by 2%. Rows
that the budget did not reach stay as they are, and `chosen` says which were measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.gpu import machine
from bench.gpu.budget import Budget
from bench.gpu.candidates import CLASSES, Class, candidates, shapes
from bench.gpu.ours import (
    Case,
    Tiling,
    TunedTiling,
    attention,
    build,
    chosen,
    pool_formats,
    target_of,
    tuned_tilings,
)
from bench.gpu.peers import difference
from bench.gpu.shapes import DRY, FULL
from bench.gpu.stopwatch import CudaStopwatch
from bench.gpu.task import Context, make_context

TABLES = Path(__file__).resolve().parents[2] / "chunk_kernels" / "tuned"
LEAST_GAIN = 0.02
"""By which a candidate must be faster than the committed row: less is noise."""
MOST_DIFFERENCE = 1e-2
LEAST_SECONDS = 20.0
"""A class is not begun with less."""
SECONDS_PER_CALL = 0.05
"""Timing a candidate on one shape: fewer runs than the grid takes, for there are hundreds."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One class's outcome."""

    which: Class
    tiling: Tiling
    gain: float
    """Geometric mean of the committed row's time over this one's."""
    tried: int


def committed(which: Class, target: str) -> Tiling:
    """The row that a launch of this class takes now."""
    for row in tuned_tilings(target):
        fits = row.most_pairs is None or which.most_pairs is not None
        if row.dtype == which.dtype and which.dim <= row.most_dim and fits:
            return row.tiling
    raise LookupError(f"{target} has no row for {which.name}")


def is_clean(which: Class, tiling: Tiling, target: str) -> list[str]:
    """What is wrong with a tiling as compiled ahead of time for a target; empty where nothing is."""
    from bench.ahead import TARGETS, compile_ahead
    from bench.kernels import attend_entries

    found = [known for known in TARGETS if known.name == target]
    if not found:
        return [f"{target} is no target of bench.kernels"]
    row = TunedTiling(which.dtype, which.dim, which.most_pairs, tiling)
    # All that `make kernels` will hold the row to; the first violation is enough.
    for entry in attend_entries(found[0], row, (which.dim, which.dim)):
        if violations := compile_ahead(entry.build).violations:
            return list(violations)
    return []


def prepared(which: Class, tiling: Tiling, target: str, dry: bool) -> list[str]:
    """Runs in a process of its own: checks a tiling, and fills Triton's cache on disk for the timing process."""
    wrong = is_clean(which, tiling, target)
    if not wrong and not dry:
        device = torch.device("cuda", 0)
        for shape in shapes(which, FULL):
            attention(build(shape, device, which.dtype), chosen(which.takes, tiling))()
        torch.cuda.synchronize()
    return wrong


def measure(context: Context, which: Class, target: str, clean: list[Tiling]) -> Measured:
    """Times the clean candidates against the committed row, which comes first and is one of them."""
    current = committed(which, target)
    dtype = "float16" if context.dry else which.dtype
    cases = [build(shape, context.device, dtype) for shape in shapes(which, DRY if context.dry else FULL)]
    expected = [attention(case, chosen(which.takes, current), stand_in=False)()[0] for case in cases]
    usual = [_seconds(context, case, which, current) for case in cases]
    best = Measured(which, current, 1.0, 0)
    tried = 0
    for tiling in clean:
        if context.budget.left < 3:
            break
        if tiling == current:
            continue
        try:
            outs = [attention(case, chosen(which.takes, tiling), stand_in=False)()[0] for case in cases]
            if any(difference(out, right) > MOST_DIFFERENCE for out, right in zip(outs, expected)):
                print(f"  {tiling}: wrong output, left out")
                continue
            times = [_seconds(context, case, which, tiling) for case in cases]
        except RuntimeError as error:
            print(f"  {tiling}: {str(error).splitlines()[:1]}")
            continue
        tried += 1
        gain = math.exp(sum(math.log(a / b) for a, b in zip(usual, times)) / len(times))
        if gain > best.gain:
            best = Measured(which, tiling, gain, tried)
    if best.gain < 1 + LEAST_GAIN:
        best = Measured(which, current, 1.0, tried)
    return Measured(which, best.tiling, best.gain, tried)


def _seconds(context: Context, case: Case, which: Class, tiling: Tiling) -> float:
    return context.stopwatch.measure(attention(case, chosen(which.takes, tiling), stand_in=False)).seconds


def table(target: str, found: list[Measured], described: dict[str, Any]) -> dict[str, Any]:
    """The target's table with the measured rows in place of the committed ones, in the committed file's form."""
    outcomes = {}
    for outcome in found:
        for dtype in ("bfloat16", "float16"):
            outcomes[dtype, outcome.which.dim, outcome.which.most_pairs] = outcome
    rows, measured = [], []
    for row in tuned_tilings(target):
        key = (row.dtype, row.most_dim, row.most_pairs)
        outcome = outcomes.get(key)
        if outcome is not None and outcome.tried:
            measured.append(f"{row.dtype} dim {row.most_dim} {'narrow' if row.most_pairs else 'wide'}")
        tiling = outcome.tiling if outcome is not None else row.tiling
        keys = {"dtype": row.dtype, "most_dim": row.most_dim, "most_pairs": row.most_pairs}
        # What a tiling leaves unsaid stands in no row.
        said_of = {name: value for name, value in asdict(tiling).items() if value is not None}
        rows.append({**keys, **said_of})
    device = (described["device"] or {}).get("name", "no device: a dry run")
    said = ", ".join(name for name in measured if not name.startswith("float16")) or "nothing"
    return {
        "target": target,
        "chosen": f"measured on {device}, {described['date'][:10]}, commit {described['commit']}: {said} "
        "(float16 as bfloat16); the rest not measured on a device yet",
        "pool_formats": list(pool_formats(target)),
        "tilings": rows,
    }


HEAD = ("target", "chosen", "pool_formats")
"""What stands before the rows."""


def to_text(document: dict[str, Any]) -> str:
    """As the committed tables are written: one row per line."""
    rows = ",\n".join(f"    {json.dumps(row)}" for row in document["tilings"])
    head = "".join(f"  {json.dumps(name)}: {json.dumps(document[name])},\n" for name in HEAD)
    return "{\n" + head + '  "tilings": [\n' + rows + "\n  ]\n}\n"


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m bench.gpu.tune`."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__)
    parser.add_argument("--budget-seconds", type=float, default=510.0)
    parser.add_argument(
        "--output", type=Path, help=f"folder for the table; default {TABLES}, a new one if dry"
    )
    parser.add_argument("--commit", help="what to record where there is no git to ask")
    parser.add_argument("--dry", action="store_true", help="no GPU: two candidates per class, interpreted")
    args = parser.parse_args(argv)
    if args.dry and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton asks when it is imported, which it has been.
        command = [sys.executable, "-m", "bench.gpu.tune", *(sys.argv[1:] if argv is None else argv)]
        return subprocess.call(command, env={**os.environ, "TRITON_INTERPRET": "1"})
    budget = Budget.of(args.budget_seconds)
    output = args.output or (Path(tempfile.mkdtemp(prefix="kvtrie-tune-dry-")) if args.dry else TABLES)
    context = make_context(args.dry, budget.ends_at, output)
    if not args.dry:
        context = replace(context, stopwatch=CudaStopwatch(context.device, SECONDS_PER_CALL))
    target = "sm_90" if args.dry else target_of(context.device)
    if not args.dry and _exact_target() != target:
        print(
            f"no table for {_exact_target()} yet: add one by copying {target}.json, then tune",
            file=sys.stderr,
        )
        return 2
    found = run(context, target)
    described = machine.describe(args.commit)
    document = table(target, found, described)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{target}.json"
    path.write_text(to_text(document), encoding="utf-8")
    for outcome in found:
        print(f"{outcome.which.name:28} {outcome.tried:3} tried, {outcome.gain:5.2f}x  {outcome.tiling}")
    print(f"{document['chosen']}\nwritten to {path}")
    return 0


def run(context: Context, target: str) -> list[Measured]:
    """Class by class, as far as the budget goes."""
    found = []
    classes = CLASSES[:2] if context.dry else CLASSES
    for place, which in enumerate(classes):
        share = context.budget.left / (len(classes) - place)
        if share < LEAST_SECONDS and not context.dry:
            print(f"{which.name}: out of budget")
            continue
        asked = list(candidates(which, committed(which, target)))[: 2 if context.dry else None]
        clean = compiled(which, asked, target, context.dry, share / 2)
        print(f"{which.name}: {len(clean)} of {len(asked)} candidates compile clean", flush=True)
        found.append(measure(context, which, target, clean))
    return found


def compiled(which: Class, asked: list[Tiling], target: str, dry: bool, seconds: float) -> list[Tiling]:
    """Which of these are clean, in the order asked; many processes, all gone before anything is timed."""
    clean = []
    # Spawned, because a forked process cannot use a CUDA context; and compiling, where the dry run interprets.
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    workers = 2 if dry else min(12, os.cpu_count() or 1)
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
            jobs = {processes.submit(prepared, which, tiling, target, dry): tiling for tiling in asked}
            try:
                for job in as_completed(jobs, timeout=None if dry else seconds):
                    if (error := job.exception()) is not None:
                        print(f"  {jobs[job]}: {type(error).__name__}: {str(error).splitlines()[:1]}")
                    elif wrong := job.result():
                        print(f"  {jobs[job]}: {'; '.join(wrong)}")
                    else:
                        clean.append(jobs[job])
            except TimeoutError:
                for job in jobs:
                    job.cancel()
                print(f"  {which.name}: only {len(clean)} of {len(asked)} compiled in {seconds:.0f} s")
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
    return [tiling for tiling in asked if tiling in clean]


def _exact_target() -> str:
    major, minor = torch.cuda.get_device_capability(0)
    gcn = getattr(torch.cuda.get_device_properties(0), "gcnArchName", "").split(":")[0]
    return gcn or f"sm_{major}{minor}"


if __name__ == "__main__":
    sys.exit(main())
