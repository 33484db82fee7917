"""One section in a process of its own: `python -m bench.gpu.worker SECTION LINES --ends-at T [--dry]`.

A CUDA fault ends every later call of its process. So the worker leaves with `FAULT` then, and the parent starts
another, which goes on after the task at fault.
"""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch

from bench.gpu import lines
from bench.gpu.task import Context, Section, make_context

FAULT = 3


def run_section(section: Section, context: Context, path: Path) -> int:
    """Runs the tasks that the file does not mention yet; 0, or `FAULT` where the device is no longer usable."""
    known = lines.read(path)
    for task in section.tasks(context):
        if task.name in known:
            continue
        left = context.budget.left
        if left < task.needs_seconds:
            lines.append(
                path,
                task.name,
                lines.SKIPPED,
                reason=f"the budget has {left:.0f} s left, this needs {task.needs_seconds:.0f}",
            )
            continue
        lines.append(path, task.name, lines.BEGUN)
        try:
            result = task.run()
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:300]
            lines.append(path, task.name, lines.FAILED, reason=f"{type(error).__name__}: {said}")
            traceback.print_exc()
            # The traceback's frames hold the task's tensors.
            del error
        else:
            lines.append(path, task.name, lines.DONE, result=result)
        if not _device_lives(context):
            return FAULT
    return 0


def _device_lives(context: Context) -> bool:
    gc.collect()
    if context.device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def main() -> int:
    """Entry point of `python -m bench.gpu.worker`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", help="module under bench.gpu with `tasks`")
    parser.add_argument("lines", type=Path, help="file to report to; tasks it names are not run again")
    parser.add_argument("--ends-at", type=float, required=True, help="time.time() at which the budget ends")
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    context = make_context(args.dry, args.ends_at, args.lines.parent)
    section: Section = import_module(f"bench.gpu.{args.section}")  # type: ignore[assignment]
    return run_section(section, context, args.lines)


if __name__ == "__main__":
    sys.exit(main())
