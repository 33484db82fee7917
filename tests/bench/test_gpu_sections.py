"""Sections survive what their tasks do to them: errors, dead processes, an empty budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu import lines, sections
from bench.gpu.budget import Budget

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys, os, time
from pathlib import Path
from bench.gpu import worker
from bench.gpu.task import Task, make_context

class Toy:
    def tasks(self, context):
        yield Task("first", lambda: {"figure": 1}, 0)
        yield Task("raises", lambda: 1 / 0, 0)
        yield Task("dies", lambda: os._exit(139), 0)
        yield Task("after", lambda: {"figure": 2}, 0)
        yield Task("dear", lambda: {"figure": 3}, 1e6)
        if "hang" in sys.argv:
            yield Task("hangs", lambda: time.sleep(600), 0)

context = make_context(True, float(sys.argv[4]), Path(sys.argv[2]).parent)
sys.exit(worker.run_section(Toy(), context, Path(sys.argv[2])))
"""


def test_every_task_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = sections.run("toy", tmp_path, Budget.of(60), dry=True, worker=("-c", WORKER))
    assert found["first"] == {"state": "done", "result": {"figure": 1}}
    assert found["raises"] == {"state": "error", "reason": "ZeroDivisionError: division by zero"}
    assert found["dies"] == {"state": "error", "reason": "its process ended with 139"}
    assert found["after"]["result"] == {"figure": 2}
    assert found["dear"]["state"] == "skipped"
    assert "the budget" in found["dear"]["reason"]
    assert len(found) == 5


def test_what_hangs_is_killed_at_the_end_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sections, "GRACE_SECONDS", 0.0)
    worker = ("-c", WORKER.replace('yield Task("dies", lambda: os._exit(139), 0)', "sys.argv.append('hang')"))
    found = sections.run("toy", tmp_path, Budget.of(20), dry=True, worker=worker)
    assert found["after"]["state"] == "done"
    assert "killed at the end of the budget" in found["hangs"]["reason"]
    assert "killed" in found["toy, the rest"]["reason"]


def test_a_worker_that_cannot_start_is_reported_once(tmp_path: Path) -> None:
    found = sections.run("toy", tmp_path, Budget.of(60), dry=True, worker=("-c", "import sys; sys.exit(5)"))
    assert found == {
        "toy, the rest": {"state": "error", "reason": "not run: the section's process ended with 5"}
    }


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    lines.append(path, "a", lines.BEGUN)
    lines.append(path, "a", lines.DONE, result={"x": 1})
    with path.open("a") as file:
        file.write('{"task": "b", "sta')
    assert lines.read(path) == {"a": {"state": "done", "result": {"x": 1}}}
