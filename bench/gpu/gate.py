"""Correctness before any timing: the kernel tests as compiled here, and `attend` against an fp64 oracle."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu import ours
from bench.gpu.peers import Unfit
from bench.gpu.peers.sdpa import Sdpa
from bench.gpu.shapes import DRY, FULL, Shape, forest, levels
from bench.gpu.task import Context, Task

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/chunk_kernels"
DRY_TESTS = "tests/chunk_kernels/test_tilings.py"
GRAPHS = "captured decode steps"
GRAPH_TESTS = "tests/api/engine/test_decode_graphs.py"
"""Real captures, which only a GPU can show. Red, they cost serving its graphs, and the kernels nothing."""
TEST_SECONDS = 200.0
SDPA_FACTOR = 1.5
FP32_ERROR = 1e-5
LSE_ERROR = 1e-5


def tasks(context: Context) -> Iterator[Task]:
    """The test suite of the kernels, then direct checks."""
    yield Task("pytest", lambda: _pytest(context, DRY_TESTS if context.dry else TESTS))
    if not context.dry:
        yield Task(GRAPHS, lambda: _graphs(context))
    scale = DRY if context.dry else FULL
    shapes = [
        levels("shared prefix", "gate", (1, 16), (1024, 192), scale),
        levels("five levels", "gate", (1, 4, 16, 64, 128), (256, 8, 256, 64, 96), scale),
        forest("forest, group 7", scale, (28, 4)),
        levels("long and unshared", "gate", (4,), (4096,), scale),
        levels("prefill", "gate", (1, 4), (1024, 128), scale, rows=128),
    ]
    checks = [(shape, dtype) for dtype in ("bfloat16", "float16", "float32") for shape in shapes]
    if context.dry:
        # Interpreted, which takes seconds for the forest.
        checks = [(shapes[0], "float32"), *((shapes[i], "float16") for i in (0, 1, 4))]
    for shape, dtype in checks:
        yield Task(f"{shape.name}, {dtype}", lambda shape=shape, dtype=dtype: _direct(context, shape, dtype))


def _graphs(context: Context) -> dict[str, Any]:
    # Without the conftest of tests/api, which wants a web server's packages.
    found = _pytest(context, GRAPH_TESTS, "--noconftest")
    return found if found["ok"] else {**found, "ok": None}


def _pytest(context: Context, tests: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=20", *options]
    if not context.dry and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    limit = max(10.0, min(TEST_SECONDS, context.budget.left))
    try:
        ran = subprocess.run(
            [*command, tests],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"ok": None, "finished": False, "summary": f"not finished within {limit:.0f} s"}
    counts = counted(ran.stdout)
    ok = ran.returncode == 0 and counts.get("passed", 0) > 0
    if not ok:
        print(ran.stdout[-6000:], ran.stderr[-2000:], sep="\n")
    last = (ran.stdout.strip().splitlines() or ["no output"])[-1]
    # The tests' own rule: without one of these they run in the interpreter, which proves nothing about this GPU.
    compiled = not context.dry and any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd"))
    return {"ok": ok, "finished": True, "compiled": compiled, "counts": counts, "summary": last}


def counted(output: str) -> dict[str, int]:
    """pytest's closing line as numbers: `{"passed": 61, "skipped": 2}`; empty where there is none."""
    for line in reversed(output.splitlines()):
        found = re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected)", line)
        if found:
            return {name.rstrip("s") if name.startswith("error") else name: int(n) for n, name in found}
    return {}


def oracle(case: ours.Case) -> tuple[Tensor, Tensor]:
    """Dense attention in fp64, request by request: out `[rows, q_heads, dim]` and lse `[rows, q_heads]`."""
    shape, outs, lses = case.shape, [], []
    group = shape.q_heads // shape.kv_heads
    for request, length in enumerate(shape.lengths):
        keys, values = (side.double().repeat_interleave(group, 0) for side in case.request_kv(request))
        query = case.query[request * shape.rows : (request + 1) * shape.rows].double()
        scores = torch.einsum("rhd,htd->rht", query, keys) * case.scale
        position = torch.arange(length - shape.rows, length, device=scores.device)
        future = torch.arange(length, device=scores.device)[None] > position[:, None]
        scores.masked_fill_(future[:, None], -torch.inf)
        lses.append(torch.logsumexp(scores, -1))
        outs.append(torch.einsum("rht,htd->rhd", torch.softmax(scores, -1), values))
    return torch.cat(outs), torch.cat(lses)


def _direct(context: Context, shape: Shape, dtype: str) -> dict[str, Any]:
    case = ours.build(shape, context.device, dtype, seed=1)
    out, lse = ours.attention(case, stand_in=False)()
    expected, expected_lse = oracle(case)
    error = _largest(out, expected)
    found: dict[str, Any] = {
        "error": error,
        "relative_error": error / float(expected.abs().max()),
        "lse_error": _largest(lse, expected_lse) / max(1.0, float(expected_lse.abs().max())),
    }
    try:
        found["sdpa_error"] = _largest(_sdpa(case), expected)
    except Unfit as unfit:
        found["sdpa_error"] = None
        found["sdpa_unfit"] = str(unfit)
    found["ok"] = accepted(found, dtype)
    return found


def accepted(found: dict[str, Any], dtype: str) -> bool:
    """fp32 within 1e-5 relative, half precision within 1.5 of SDPA's own error, and the lse within 1e-5."""
    if not found["lse_error"] <= LSE_ERROR:
        return False
    if dtype == "float32":
        return bool(found["relative_error"] <= FP32_ERROR)
    return found["sdpa_error"] is not None and bool(found["error"] <= SDPA_FACTOR * found["sdpa_error"])


def _largest(found: Tensor, expected: Tensor) -> float:
    """Largest difference; NaN in either gives NaN, which no comparison accepts."""
    return float((found.double() - expected).abs().max())


def _sdpa(case: ours.Case) -> Tensor:
    if case.pool.dtype != torch.float32:
        return Sdpa().prepare(case)()
    # Flash has no fp32; the plain composition is what torch would run.
    shape, outs = case.shape, []
    group = shape.q_heads // shape.kv_heads
    for request in range(len(shape.leaves)):
        keys, values = (side.repeat_interleave(group, 0) for side in case.request_kv(request))
        query = case.query[request * shape.rows : (request + 1) * shape.rows].transpose(0, 1)
        mask = torch.ones(shape.rows, keys.shape[1], dtype=torch.bool, device=keys.device)
        mask = mask.tril(keys.shape[1] - shape.rows)
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[None], keys[None], values[None], attn_mask=mask, scale=case.scale
            )[0].transpose(0, 1)
        )
    return torch.cat(outs)


def verdict(found: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """`green`, `incomplete` (the tests did not finish in time, all else is right) or `red`, and what is wrong."""
    wrong, unfinished = [], []
    for name, entry in found.items():
        result = entry.get("result")
        if result is None:
            (unfinished if entry["state"] == "skipped" else wrong).append(f"{name}: {entry.get('reason')}")
        elif result["ok"] is None:
            unfinished.append(f"{name}: {result['summary']}")
        elif not result["ok"]:
            wrong.append(f"{name}: {result.get('summary') or result}")
    suites = ("pytest", GRAPHS)
    direct = [name for name, entry in found.items() if name not in suites and entry["state"] == "done"]
    if not direct:
        wrong.append("no direct check was made")
    return ("red" if wrong else "incomplete" if unfinished else "green"), wrong or unfinished
