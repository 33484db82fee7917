"""A server run by a command: it hears the command's signals, and does not outlive it. Real processes throughout."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUNS = """
import os, sys
from kvtrie.api.cli.child_server import run_server
print("up", flush=True)
sys.exit(run_server([sys.executable, "-c", sys.argv[1]], os.environ, float(sys.argv[2])))
"""
NOTES = """
import os, signal, sys, time
def note(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    if number not in (signal.SIGUSR1, signal.SIGUSR2):
        sys.exit(7)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, note)
print("server", os.getpid(), flush=True)
time.sleep(60)
"""
DEAF = NOTES.replace("sys.exit(7)", "pass")
SECONDS = 30.0
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command with a server; both end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(server: str, grace_seconds: float = SECONDS, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", RUNS, server, str(grace_seconds)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        # The whole session: a server that outlives its command is what this is about.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def server_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    word, number = process.stdout.readline().split()
    assert word == "server"
    return int(number)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_ends_the_command_ends_the_server(start: Start, number: signal.Signals) -> None:
    process = start(NOTES)
    server = server_of(process)
    os.kill(process.pid, number)
    assert process.stdout is not None
    assert process.stdout.readline() == f"heard {number.name}\n"
    assert process.wait(SECONDS) == 7, "the server's own exit code"
    assert not is_running(server)


def test_a_server_that_does_not_end_is_killed(start: Start) -> None:
    process = start(DEAF, grace_seconds=0.3)
    server = server_of(process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(SECONDS) == 128 + signal.SIGKILL
    assert not is_running(server)


def test_other_signals_are_passed_on_and_end_nothing(start: Start) -> None:
    process = start(NOTES, grace_seconds=0.1)
    server = server_of(process)
    assert process.stdout is not None
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(process.pid, number)
        assert process.stdout.readline() == f"heard {number.name}\n"
    time.sleep(0.3)
    assert is_running(server)
    assert process.poll() is None


def test_a_signal_before_the_server_runs_is_not_lost(start: Start) -> None:
    process = start("import time; time.sleep(60)")
    # Somewhere between the first handler and the server's start, or after it: it ends in any case.
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(SECONDS) in (128 + signal.SIGTERM, -signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_nohup_ignores_stays_ignored(start: Start) -> None:
    ignoring = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, flush=True); input()"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(ignoring, stdin=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    os.kill(process.pid, signal.SIGHUP)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(SECONDS) == 0


def test_ctrl_c_reaches_the_server_once() -> None:
    """In a terminal both get it. Passed on, too, it would be the second one, at which servers stop at once."""
    counts = """
import signal, sys, time
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
print("ready", flush=True)
end = time.monotonic() + 60
while not heard and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)
print("heard", len(heard), flush=True)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", RUNS, counts, "30"])
    try:
        said = read_until(terminal, b"ready")
        os.write(terminal, b"\x03")
        said = read_until(terminal, b"heard ")
        said += os.read(terminal, 64) if said.endswith(b"heard ") else b""
        assert b"heard 1" in said
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        said += os.read(terminal, 1024)
    return said
