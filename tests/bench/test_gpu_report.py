"""What is made of a run: document, table, plots."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import plots, report

MACHINE = {"date": "2026-11-23T07:00:00", "commit": "abc1234", "device": {"name": "NVIDIA H200"}}


def row(seconds: float, **peers: dict[str, Any]) -> dict[str, Any]:
    return {
        "state": "done",
        "result": {
            "family": "cascade",
            "kv_bytes": 67_000_000,
            "floor_seconds": 8e-6,
            "bound": "memory",
            "seconds": seconds,
            "percent_of_floor": 8e-4 / seconds,
            "plan_seconds": 1e-4,
            "peers": peers,
        },
    }


def document() -> dict[str, Any]:
    sections: dict[str, report.Entries] = {
        "gate": {name: {"state": "done", "result": {"ok": True}} for name in ("pytest", "direct")},
        "ceilings": {
            "bandwidth": {"state": "done", "result": {"bytes_per_second": 4.3e12}},
            "flops": {"state": "error", "reason": "out of memory"},
        },
        "grid": {
            "one": row(1e-5, fast={"seconds": 5e-6}, slow={"seconds": 4e-5}, absent={"skipped": "not there"}),
            "two": {"state": "error", "reason": "RuntimeError: no"},
            "one / flex": {
                "state": "done",
                "result": {"row": "one", "peer": "flex", "outcome": {"seconds": 2e-5}},
            },
            "three": row(2e-5, fast={"error": "its output differs"}),
            "three / flex": {"state": "skipped", "reason": "no budget"},
        },
        "serve": {
            "reuse on": {
                "state": "done",
                "result": {"tokens_per_second": 3000.0, "ttft_median_seconds": 0.5, "ttft_max_seconds": 1.0},
            },
            "HF generate": {
                "state": "done",
                "result": {"tokens_per_second": 600.0, "ttft_median_seconds": None, "ttft_max_seconds": None},
            },
            "HF generate_batch": {"state": "skipped", "reason": "no budget"},
        },
    }
    return report.assemble(MACHINE, {"dry": False}, sections)


def test_ratios_are_the_peers_time_over_ours() -> None:
    found = document()
    one, _, three = found["grid"]
    assert one["peers"]["fast"]["ratio"] == pytest.approx(0.5)
    assert one["peers"]["slow"]["ratio"] == pytest.approx(4)
    assert one["peers"]["flex"]["ratio"] == pytest.approx(2)
    assert three["peers"]["flex"] == {"skipped": "no budget"}
    assert found["serve"]["ratios"] == {"HF generate": pytest.approx(5)}
    assert found["gate"]["verdict"] == "green"


def test_the_table_says_all_of_it() -> None:
    text = report.table(document())
    assert "correctness gate: green" in text
    assert "4.30 TB/s" in text
    assert "flops: out of memory" in text
    assert "error: RuntimeError: no" in text
    one = next(line for line in text.splitlines() if line.startswith("one"))
    assert one.split()[-4:] == ["0.50", "4.00", "-", "2.00"]
    three = next(line for line in text.splitlines() if line.startswith("three"))
    assert three.split()[-4] == "!"
    assert "skipped: no budget" in text


def test_errors_name_tasks_and_peers() -> None:
    entries = {
        "one": row(1e-5, fast={"error": "differs"}),
        "two": {"state": "error", "reason": "RuntimeError: no"},
        "three": {"state": "skipped", "reason": "no budget"},
        "one / flex": {"state": "done", "result": {"row": "one", "peer": "flex", "outcome": {"error": "no"}}},
    }
    assert report.errors({"grid": entries}) == [
        ("one / fast", "differs"),
        ("two", "RuntimeError: no"),
        ("one / flex / flex", "no"),
    ]


def test_a_document_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "gpu.json"
    report.write(path, {"first": 1})
    report.write(path, document())
    assert json.loads(path.read_text()) == json.loads(json.dumps(document()))
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]


def test_plots_are_drawn_from_json_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "gpu.json"
    report.write(path, document())
    drawn = plots.draw(path)
    assert {file.name for file in drawn} == {
        f"gpu-{name}.{ending}" for name in ("floor", "peers", "serving") for ending in ("svg", "png")
    }
    for file in drawn:
        assert file.read_bytes().startswith(b"\x89PNG" if file.suffix == ".png" else b"<?xml")
    assert "three" in (tmp_path / "gpu-floor.svg").read_text()


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.json"
    report.write(path, document())
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plots.draw(path)
