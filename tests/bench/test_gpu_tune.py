"""The autotuner: what it tries, how it judges, and the table it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu import tune
from bench.gpu.budget import Budget
from bench.gpu.candidates import CLASSES, Class, candidates, shapes
from bench.gpu.ours import Tiling, tuned_tilings
from bench.gpu.shapes import DRY, FULL
from bench.gpu.stopwatch import Timing
from bench.gpu.task import Context

WIDE = Class("bfloat16", 128, None)
NARROW = Class("bfloat16", 128, 16)
DESCRIBED = {"device": {"name": "NVIDIA H200"}, "date": "2026-11-23T07:00:00", "commit": "abc1234"}


@pytest.mark.parametrize("which", CLASSES, ids=lambda which: which.name)
def test_candidates_begin_with_the_committed_row_and_are_distinct(which: Class) -> None:
    current = tune.committed(which, "sm_90")
    found = list(candidates(which, current))
    assert found[0] == current
    assert len(set(found)) == len(found) > 10
    assert all(shape.dim == which.dim for shape in shapes(which, FULL))


def test_a_class_takes_the_launches_its_row_is_for() -> None:
    assert NARROW.takes(16)
    assert not NARROW.takes(17)
    assert WIDE.takes(17)
    assert not WIDE.takes(16)


class Pretended:
    """Says that each call takes what the tiling of the moment is listed with."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def measure(self, call: Callable[[], object]) -> Timing:
        seconds = self.seconds.pop(0)
        return Timing(seconds, seconds, seconds, 1)


def measured(monkeypatch: pytest.MonkeyPatch, faster: float) -> tune.Measured:
    """One other candidate, so many times as fast as the committed one, on the class's shapes."""
    monkeypatch.setattr(tune, "attention", lambda case, choose, **_: lambda: (case.query, None))
    count = len(shapes(NARROW, DRY))
    watch = Pretended([1.0] * count + [1 / faster] * count)
    context = Context(torch.device("cpu"), True, Budget(time.time() + 60), Path(), watch)
    current = tune.committed(NARROW, "sm_90")
    return tune.measure(context, NARROW, "sm_90", [current, replace(current, block_n=128)])


def test_a_faster_candidate_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, 1.2)
    assert found.tiling.block_n == 128
    assert found.gain == pytest.approx(1.2)
    assert found.tried == 1


@pytest.mark.parametrize("faster", [0.8, 1.01])
def test_a_slower_or_barely_faster_one_is_not(monkeypatch: pytest.MonkeyPatch, faster: float) -> None:
    found = measured(monkeypatch, faster)
    assert found.tiling == tune.committed(NARROW, "sm_90")
    assert found.gain == 1


def test_a_wrong_candidate_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tune.committed(NARROW, "sm_90")

    def attention(case: Any, choose: Any, **_: Any) -> Callable[[], tuple[torch.Tensor, None]]:
        return lambda: (case.query if chosen(choose) == usual else case.query * 1.1, None)

    def chosen(choose: Any) -> Tiling:
        return next(
            cell.cell_contents for cell in choose.__closure__ if isinstance(cell.cell_contents, Tiling)
        )

    monkeypatch.setattr(tune, "attention", attention)
    watch = Pretended([1.0] * len(shapes(NARROW, DRY)))
    context = Context(torch.device("cpu"), True, Budget(time.time() + 60), Path(), watch)
    found = tune.measure(context, NARROW, "sm_90", [usual, replace(usual, block_n=128)])
    assert found.tiling == usual
    assert found.tried == 0
    assert watch.seconds == []


def test_the_table_has_the_committed_form() -> None:
    document = tune.table("sm_90", [], DESCRIBED)
    committed = json.loads((tune.TABLES / "sm_90.json").read_text(encoding="utf-8"))
    assert {name: document[name] for name in committed if name != "chosen"} == {
        name: value for name, value in committed.items() if name != "chosen"
    }
    assert json.loads(tune.to_text(document)) == document
    assert "nothing" in document["chosen"]


def test_measured_rows_take_the_place_of_committed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiling = replace(tune.committed(WIDE, "sm_90"), block_n=32, num_stages=4)
    document = tune.table("sm_90", [tune.Measured(WIDE, tiling, 1.3, 40)], DESCRIBED)
    assert "NVIDIA H200, 2026-11-23, commit abc1234: bfloat16 dim 128 wide" in document["chosen"]
    (tmp_path / "sm_90.json").write_text(tune.to_text(document), encoding="utf-8")
    before = tuned_tilings("sm_90")
    monkeypatch.setattr("kvtrie.chunk_kernels.tilings.TABLES", tmp_path)
    tuned_tilings.cache_clear()
    try:
        after = tuned_tilings("sm_90")
    finally:
        tuned_tilings.cache_clear()
    changed = [new for old, new in zip(before, after) if old != new]
    assert [(row.dtype, row.most_dim, row.most_pairs) for row in changed] == [
        ("float16", 128, None),
        ("bfloat16", 128, None),
    ]
    assert all(row.tiling == tiling for row in changed)
