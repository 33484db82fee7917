"""`kvtrie trace record`: a command runs with the variable set; `--info` says what a trace holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

WRITES_A_TRACE = """
from kvtrie.api.traffic.recorder import recorder_from_environment
log = recorder_from_environment(16, "engine")
for at in range(3):
    log.record("tenant:x", [b"k" * 16, b"l" * 16], prompt_tokens=40, output_tokens=1, arrived_at=float(at))
log.close()
"""


def test_a_command_is_recorded(kvtrie, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        kvtrie("trace", "record", "--bytes", "1MiB", "log", "--", sys.executable, "-c", WRITES_A_TRACE).code
        == 0
    )
    ran = kvtrie("trace", "record", "--info", "log")
    assert "3 requests of 1 tenant in 2 s" in ran.out
    assert "6 blocks of 16 tokens asked for, 2 different" in ran.out
    document = kvtrie("trace", "record", "--info", "log", "--format", "json").document
    assert (document["format"], document["infinite_hit_ratio"]) == ("kvtrie-trace-info", pytest.approx(4 / 6))
    assert "HIT RATIO" in kvtrie("trace", "simulate", "log").out


def test_the_command_s_exit_code_and_environment_are_its_own(kvtrie, tmp_path):
    code = "import os, sys; sys.exit(7 if os.environ['KVTRIE_TRACE'].endswith('log-%p') else 8)"
    assert kvtrie("trace", "record", str(tmp_path / "log-%p"), "--", sys.executable, "-c", code).code == 7
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert (
        kvtrie("trace", "record", str(tmp_path / "log"), "--", sys.executable, "-c", killed).code == 128 + 15
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log"], "give the command to record"),
        (["log", "--", "no-such-program"], "cannot run no-such-program: No such file"),
        (["no/such/log", "--", "true"], "there is no folder"),
        (["--bytes", "3", "log", "--", "true"], "--bytes 3 is too small"),
        (["--bytes", "lots", "log", "--", "true"], "'lots' is not like 2GiB"),
        (["--info", "none"], "trace none cannot be read"),
        (["--info", "log", "--", "true"], "--info shows a trace and runs nothing"),
    ],
)
def test_bad_usage_is_one_line(kvtrie, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    ran = kvtrie("trace", "record", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_info_of_another_form(kvtrie, tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}))
    assert "2 blocks of 512 tokens" in kvtrie("trace", "record", "--info", str(path)).out
