"""The gate: what it lets pass, and that no peer is timed with a wrong output."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu import gate, grid, ours
from bench.gpu.budget import Budget
from bench.gpu.peers import PEERS, SLOW_PEERS, Unfit, difference
from bench.gpu.peers.flashinfer_cascade import cascade_levels
from bench.gpu.peers.peer import MOST_DIFFERENCE
from bench.gpu.shapes import DRY, Shape, forest, levels
from bench.gpu.stopwatch import DryStopwatch
from bench.gpu.task import Context
from kvtrie.chunk_kernels import attend_reference

CPU = torch.device("cpu")
SMALL = levels("small", "", (1, 2, 4), (256, 128, 192), DRY)
SHAPES = [
    SMALL,
    forest("forest", DRY, (28, 4)),
    levels("prefill", "", (1, 2), (512, 512), DRY, rows=512),
    levels("unshared", "", (3,), (700,), DRY),
]


def context() -> Context:
    return Context(CPU, True, Budget(time.time() + 60), Path(), DryStopwatch())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_oracle_agrees_with_the_reference(shape: Shape) -> None:
    case = ours.build(shape, CPU, "float32")
    out, lse = gate.oracle(case)
    expected, expected_lse = attend_reference(case.query, case.pool, 0, case.sequences, case.scale)
    torch.testing.assert_close(out.float(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.float(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("peer", [*PEERS, *SLOW_PEERS], ids=lambda peer: peer.name)
def test_peers_compute_the_same(peer: Any, shape: Shape) -> None:
    if (why := peer.absent(CPU)) is not None:
        pytest.skip(why)
    case = ours.build(shape, CPU, "float16")
    try:
        out = peer.prepare(case)()
    except Unfit as unfit:
        pytest.skip(str(unfit))
    assert difference(out, gate.oracle(case)[0]) < MOST_DIFFERENCE / 4


def test_unshared_requests_share_no_slot() -> None:
    case = ours.build(SMALL, CPU, "float32")
    apart = ours.build_unshared(SMALL, CPU, "float32", case)
    slots = [slot for sequence in apart.sequences for slot in sequence.slots]
    assert len(slots) == len(set(slots))
    out, _ = attend_reference(apart.query, apart.pool, 0, apart.sequences, apart.scale)
    expected, _ = attend_reference(case.query, case.pool, 0, case.sequences, case.scale)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("shape", [*SHAPES, forest("forest 4", DRY, (32, 8))], ids=lambda shape: shape.name)
def test_cascade_levels_cover_every_request_once(shape: Shape) -> None:
    case = ours.build(shape, CPU, "float16")
    pages: list[list[int]] = [[] for _ in shape.leaves]
    tokens = [0] * len(shape.leaves)
    for level in cascade_levels(case):
        assert level.row_starts[-1] == len(case.query)
        assert len(level.page_starts) == len(level.row_starts) == len(level.last_page_tokens) + 1
        for group, last in enumerate(level.last_page_tokens):
            own = level.page_indices[level.page_starts[group] : level.page_starts[group + 1]]
            first, end = (row // shape.rows for row in level.row_starts[group : group + 2])
            for request in range(first, end):
                pages[request] += own
                tokens[request] += (len(own) - 1) * shape.chunk_tokens + last if own else last
    assert pages == [list(sequence.slots) for sequence in case.sequences]
    assert tokens == shape.lengths


class Wrong:
    """A peer that is 2% off."""

    name = "wrong"

    def absent(self, device: torch.device) -> str | None:
        return None

    def prepare(self, case: ours.Case) -> Callable[[], torch.Tensor]:
        out = gate.oracle(case)[0] * 1.02
        return lambda: out


class NeverAsked:
    def measure(self, call: Callable[[], object]) -> Any:
        raise AssertionError("timed a wrong output")


def test_a_wrong_peer_is_not_timed() -> None:
    case = ours.build(SMALL, CPU, "float32")
    timed = Context(CPU, True, Budget(time.time() + 60), Path(), NeverAsked())
    outcome = grid._compared(timed, case, Wrong(), gate.oracle(case)[0])
    assert "not timed" in outcome["error"]
    assert "seconds" not in outcome


def test_a_peer_that_fails_leaves_the_row_alone() -> None:
    class Failing(Wrong):
        def prepare(self, case: ours.Case) -> Callable[[], torch.Tensor]:
            raise RuntimeError("no kernel image")

    case = ours.build(SMALL, CPU, "float32")
    outcome = grid._compared(context(), case, Failing(), case.query)
    assert "no kernel image" in outcome["error"]


def test_what_is_not_finite_is_infinitely_far() -> None:
    one = torch.ones(2, 2)
    assert difference(one * float("nan"), one) == float("inf")
    assert difference(one[:1], one) == float("inf")
    assert difference(one, one) == 0


@pytest.mark.parametrize(
    ("dtype", "changes", "fine"),
    [
        ("bfloat16", {}, True),
        ("bfloat16", {"error": 1.6e-3}, False),
        ("bfloat16", {"error": float("nan")}, False),
        ("bfloat16", {"sdpa_error": None}, False),
        ("float16", {"lse_error": 1.1e-5}, False),
        ("float16", {"lse_error": float("nan")}, False),
        ("float32", {"relative_error": 9e-6}, True),
        ("float32", {"relative_error": 1.1e-5}, False),
    ],
)
def test_what_the_gate_accepts(dtype: str, changes: dict[str, Any], fine: bool) -> None:
    found = {"error": 1.4e-3, "relative_error": 1e-6, "lse_error": 1e-6, "sdpa_error": 1e-3, **changes}
    assert gate.accepted(found, dtype) is fine


def done(ok: bool | None) -> dict[str, Any]:
    return {"state": "done", "result": {"ok": ok, "summary": "said"}}


def test_the_verdict() -> None:
    assert gate.verdict({"pytest": done(True), "a": done(True)})[0] == "green"
    assert gate.verdict({"pytest": done(None), "a": done(True)})[0] == "incomplete"
    assert gate.verdict({"pytest": done(True), "a": done(False)})[0] == "red"
    assert gate.verdict({"pytest": done(False), "a": done(True)})[0] == "red"
    assert gate.verdict({"pytest": done(True), "a": {"state": "error", "reason": "x"}})[0] == "red"
    assert gate.verdict({"pytest": done(True)})[0] == "red", "tests alone may have run interpreted"


def test_pytests_closing_line() -> None:
    assert gate.counted("..\n2 failed, 61 passed, 3 skipped in 9.1s\n") == {
        "failed": 2,
        "passed": 61,
        "skipped": 3,
    }
    assert gate.counted("1 passed, 1 error in 0.1s") == {"passed": 1, "error": 1}
    assert gate.counted("Traceback") == {}
