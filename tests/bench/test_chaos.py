"""A small run of `python -m bench.chaos`, in a process of its own: it sends itself SIGINTs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_few_hundred_disturbed_requests() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.chaos",
            "--requests",
            "500",
            "--interrupt-every",
            "0.03",
            "--seed",
            "7",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout)
    assert (found["wrong"], found["unexpected"], found["unbalanced"]) == (0, 0, [])
    assert found["requests"] >= 500
    # And it was no walk: every kind of disturbance came.
    counts = found["counts"]
    assert found["interrupts"] > 20
    for name in (
        "engine: preemptions",
        "engine: evictions",
        "engine: loaded_chunks",
        "engine: lower_outages",
    ):
        assert counts[name] > 0, name
    assert any(name.startswith("ended by") for name in counts)
