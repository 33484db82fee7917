"""The GPU script from end to end, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]


def ran(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_dry_run_goes_through_all_of_it(tmp_path: Path) -> None:
    done = ran("--dry", "--output", str(tmp_path), "--commit", "abc+changes")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    files = [file for file in tmp_path.iterdir() if file.suffix == ".json"]
    assert [file.name.split("-", 2)[2][-16:] for file in files] == ["abc-changes.json"]
    assert not [file for file in tmp_path.iterdir() if file.is_dir()], (
        "lines of the sections are cleared away"
    )
    document = json.loads(files[0].read_text(encoding="utf-8"))
    assert document["settings"]["dry"] is True
    assert "mean nothing" in document["settings"]["scaled"]
    assert document["gate"]["verdict"] == "green", document["gate"]["why"]
    assert document["gate"]["checks"]["pytest"]["result"]["counts"]["passed"] > 0
    rows = {row["name"]: row for row in document["grid"]}
    assert len(rows) >= 20
    assert [name for name, row in rows.items() if "seconds" not in row] == []
    peers = [peer for row in rows.values() for peer in row["peers"].values()]
    assert [peer for peer in peers if "error" in peer] == []
    assert sum("ratio" in peer for peer in peers) > 2 * len(rows), (
        "SDPA and the torch composition run anywhere"
    )
    assert any(row["kernel_launched"] for row in rows.values()), "the kernel itself ran, interpreted"
    ways = document["serve"]["ways"]
    assert [name for name, way in ways.items() if "tokens_per_second" not in way] == []
    assert {"reuse on", "reuse off", "HF generate"} < set(ways)
    assert ways["reuse off"]["ok"] is True
    assert ways["reuse on"]["cached_tokens"] > 0
    assert ways["reuse off"]["cached_tokens"] == 0
    assert ways["HF generate"]["first_tokens_as_ours"] == 1
    assert "FastTree N 1,10" in done.stdout


def test_without_a_gpu_it_says_so() -> None:
    done = ran(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--dry" in done.stderr


def test_without_kvtrie_it_says_how_to_install() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'kvtrie': raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, No())\n"
        "from bench.gpu.__main__ import main\n"
        "sys.exit(main(['--dry']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install --no-deps --no-build-isolation -e ." in done.stderr


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        ("pass", 400, "built"),
        ("import sys; sys.exit(3)", 400, "failed"),
        ("import time; time.sleep(60)", 4, "in time"),
    ],
)
def test_the_grid_does_not_wait_forever_for_flashinfer(
    code: str, seconds: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import __main__ as script
    from bench.gpu.budget import Budget
    from bench.gpu.peers.flashinfer_pages import SKIP, absent

    monkeypatch.setenv(SKIP, "")
    build = subprocess.Popen([sys.executable, "-c", code], preexec_fn=os.setpgrp)
    assert said in script._await_build(build, Budget.of(seconds))
    assert build.poll() is not None
    if said != "built":
        assert said in (absent(torch.device("cpu")) or ""), "its peers are skipped with the reason"
