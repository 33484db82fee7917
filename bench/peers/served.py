"""A server as a child process: started, waited for, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.2
_KILLED_SECONDS = 5.0
_LOG_CHARACTERS = 2000


class NotServing(Exception):
    """A server ended, or did not answer in time; the message has the end of its log."""


class Served:
    """A server that has a process group of its own. Use it as a context: it ends with it.

    Args:
        command: what starts it.
        environment: variables besides those of this process.
        log: file that gets its output.
        grace_seconds: time to end by itself after SIGTERM; then it is killed.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, grace_seconds: float = 30.0
    ) -> None:
        self._log, self._grace_seconds = log, grace_seconds
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started; also the number of its group."""
        return self._process.pid

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def wait_until_it_answers(self, url: str, deadline_seconds: float) -> None:
        """Returns when `GET url` is answered with 200.

        Raises:
            NotServing: the process has ended, or the deadline has passed.
        """
        end = time.monotonic() + deadline_seconds
        while not _answers(url):
            if self._process.poll() is not None:
                raise NotServing(f"the server ended with {self._process.returncode}:\n{self._log_end()}")
            if time.monotonic() > end:
                raise NotServing(f"{url} did not answer within {deadline_seconds:g} s:\n{self._log_end()}")
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        """Ends the process and every other of its group. May be called twice."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            end = time.monotonic() + self._grace_seconds
            # Not `wait`: as long as the process is not reaped, no other one can get its number.
            while not self._has_ended() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._wait_for_the_group()

    def _wait_for_the_group(self) -> None:
        """What a killed process held, cores and memory, must be free for the next measurement."""
        end = time.monotonic() + _KILLED_SECONDS
        with contextlib.suppress(ProcessLookupError):
            # Signal 0 asks only. A group whose members nobody reaps has ended too, hence the bound.
            while time.monotonic() < end:
                os.killpg(self._process.pid, 0)
                time.sleep(_POLL_SECONDS)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _log_end(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    # Without proxies: the server is on the loopback interface.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
