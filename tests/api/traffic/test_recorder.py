"""The request log: bounded, anonymous, readable at every moment, and never the reason a request fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from kvtrie.api.trace import open_trace
from kvtrie.api.traffic import recorder
from kvtrie.api.traffic.log_form import older_half
from kvtrie.api.traffic.recorder import TraceRecorder, recorder_from_environment
from kvtrie.prefix_tree.errors import InputError

KEYS = [bytes([100 + number]) * 16 for number in range(30)]


def record(
    log: TraceRecorder, keys: list[bytes], at: float = 1.0, scope: str = "tenant:acme", **more: int
) -> None:
    log.record(scope, keys, prompt_tokens=16 * len(keys), output_tokens=3, arrived_at=at, **more)


def test_paths_come_back_as_they_were(tmp_path: Path) -> None:
    log = TraceRecorder(tmp_path / "log", 16, "engine")
    paths = [KEYS[:5], KEYS[:8], [*KEYS[:3], KEYS[20]], [], KEYS[:5]]
    for at, path in enumerate(paths):
        record(log, path, float(at))
    record(log, KEYS[:8], 9.0, "tenant:globex", asked_from=2, asked_to=7)
    log.close()
    trace = open_trace(tmp_path / "log")
    number: dict[bytes, int] = {}
    for index, path in enumerate([*paths, KEYS[:8]]):
        blocks = trace.blocks[trace.starts[index] : trace.starts[index + 1]].tolist()
        assert len(blocks) == len(path)
        assert all(number.setdefault(key, block) == block for key, block in zip(path, blocks))
    assert len(set(number.values())) == len(number)
    assert trace.asked_blocks.tolist() == [5, 8, 4, 0, 5, 5]
    assert trace.output_tokens.tolist() == [3] * 6
    assert len(trace.tenants) == 2
    assert (log.written, log.dropped) == (6, 0)


def test_nothing_is_said(tmp_path: Path) -> None:
    logs = [TraceRecorder(tmp_path / name, 16, "engine") for name in ("one", "two")]
    for log in logs:
        record(log, KEYS[:4])
        log.close()
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    for secret in (
        b"acme",
        *(key.hex().encode() for key in KEYS),
        *(str(int.from_bytes(k[:8], "little")).encode() for k in KEYS),
    ):
        assert secret not in one
    header, row = map(json.loads, one.splitlines())
    assert set(header) == {"format", "version", "chunk_tokens", "source"}
    assert set(row) == {"t", "who", "in", "out", "ids"}
    # The salt is another one each time, and stands nowhere: two logs cannot be compared.
    other = json.loads(two.splitlines()[1])
    assert not set(row["ids"]) & set(other["ids"])
    assert row["who"] != other["who"]
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0


def test_it_is_bounded_and_both_halves_are_readable(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = TraceRecorder(path, 16, "engine", most_bytes=8192)
    random = np.random.default_rng(0)
    for at in range(2000):
        record(log, [*KEYS[:6], random.bytes(16)], float(at))
        size = path.stat().st_size + (older_half(path).stat().st_size if older_half(path).exists() else 0)
        assert size <= 8192
    trace = open_trace(path)
    # The latest requests, without a gap.
    assert trace.times[-1] == 1999.0
    assert (np.diff(trace.times) == 1.0).all()
    assert 30 < len(trace) < 2000
    # What all have in common is one path, in both halves.
    assert trace.unique_blocks == 6 + len(trace)
    assert (log.written, log.dropped) == (2000, 0)
    record(log, [random.bytes(16) for _ in range(1000)])
    assert log.dropped == 1


def test_the_memory_of_known_blocks_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_KNOWN", 20)
    log = TraceRecorder(tmp_path / "log", 16, "engine")
    for round_ in range(3):
        for end in range(1, 30):
            record(log, KEYS[:end], round_ * 30.0 + end)
            assert len(log._known) <= 30
    assert open_trace(tmp_path / "log").unique_blocks == 29


def test_a_restarted_process_appends(tmp_path: Path) -> None:
    for at in range(3):
        log = TraceRecorder(tmp_path / "log", 16, "engine")
        record(log, KEYS[:2], float(at))
        log.close()
    trace = open_trace(tmp_path / "log")
    assert (len(trace), trace.unique_blocks) == (3, 6)


def test_many_threads(tmp_path: Path) -> None:
    log = TraceRecorder(tmp_path / "log", 16, "sidecar", most_bytes=1 << 20)

    def work(number: int) -> None:
        for _ in range(50):
            record(log, [*KEYS[:3], bytes([number]) * 16], scope=f"tenant:{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = open_trace(tmp_path / "log")
    assert (len(trace), trace.unique_blocks, len(trace.tenants)) == (300, 9, 6)


@pytest.mark.parametrize("how", ["full", "half full", "gone"])
def test_a_failing_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    log = TraceRecorder(tmp_path / "log", 16, "engine")
    record(log, KEYS[:4], 1.0)
    write = os.write

    def fail(file: int, line: bytes) -> int:
        if how == "half full":
            return write(file, line[: len(line) // 2])
        raise OSError(errno.ENOSPC if how == "full" else errno.EIO, "no")

    monkeypatch.setattr(recorder.os, "write", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            record(log, KEYS[:5], 2.0)
            log._not_before = 0.0
    assert (log.written, log.dropped) == (1, 3)
    assert len(caplog.records) == 1, "said once"
    monkeypatch.setattr(recorder.os, "write", write)
    record(log, KEYS[:6], 3.0)
    assert log.written == 2
    trace = open_trace(tmp_path / "log")
    assert trace.times.tolist() == [1.0, 3.0]
    assert trace.unique_blocks == 6


def test_after_a_failure_the_disk_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TraceRecorder(tmp_path / "log", 16, "engine")
    tries = []

    def fail(file: int, line: bytes) -> int:
        tries.append(line)
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(recorder.os, "write", fail)
    for _ in range(10):
        record(log, KEYS[:2])
    assert (len(tries), log.dropped) == (1, 10)


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVTRIE_TRACE", raising=False)
    monkeypatch.delenv("KVTRIE_TRACE_BYTES", raising=False)
    assert recorder_from_environment(16, "engine") is None
    monkeypatch.setenv("KVTRIE_TRACE", str(tmp_path / "log-%p"))
    log = recorder_from_environment(16, "engine")
    assert log is not None
    assert log.path == tmp_path / f"log-{os.getpid()}"
    monkeypatch.setenv("KVTRIE_TRACE_BYTES", "many")
    with pytest.raises(InputError, match="'many'"):
        recorder_from_environment(16, "engine")
    monkeypatch.setenv("KVTRIE_TRACE_BYTES", "100")
    with pytest.raises(InputError, match="KVTRIE_TRACE_BYTES=100 is too small"):
        recorder_from_environment(16, "engine")
    monkeypatch.delenv("KVTRIE_TRACE_BYTES")
    monkeypatch.setenv("KVTRIE_TRACE", str(tmp_path / "none" / "log"))
    with pytest.raises(InputError, match="cannot be written: No such file"):
        recorder_from_environment(16, "engine")
