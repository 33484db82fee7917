"""Fixtures for every test: a real redis-server on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 20.0

# Before torch is imported, and inherited by every process a test starts: on tiny models threads only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Likewise before Triton is: without a GPU, kernels run in its interpreter.
if not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")):
    os.environ["TRITON_INTERPRET"] = "1"


class RedisServer:
    """A redis-server process of our own: no persistence, a free port, a directory of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.socket_path = directory / "redis.sock"
        self._directory = directory
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the server that runs now, or ran last."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone. Works on a stopped one too."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: undoes `stop`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kills the server if it runs, and starts an empty one on the same port."""
        self.kill()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", str(self._directory)),
                *("--unixsocket", str(self.socket_path), *self._arguments),
            ],
            stdout=(self._directory / "redis.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                log = (self._directory / "redis.log").read_text(errors="replace")
                pytest.fail(f"redis-server did not start on port {self.port}:\n{log[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                # `-NOAUTH` is an answer too.
                return connection.recv(1) in (b"+", b"-")
        except OSError:
            return False


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts redis-servers with further arguments; all of them end with the test."""
    if shutil.which("redis-server") is None:
        message = "redis-server is not installed (apt-get install redis-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    servers: list[RedisServer] = []
    # Not tmp_path: a Unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kvtrie-redis-") as root:

        def start(*arguments: str) -> RedisServer:
            directory = Path(root) / str(len(servers))
            directory.mkdir()
            server = RedisServer(directory, *arguments)
            servers.append(server)
            return server

        try:
            yield start
        finally:
            for server in servers:
                server.kill()


@pytest.fixture
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """A running redis-server: `.url .port .pid .socket_path`, `.kill() .stop() .cont() .restart()`."""
    return start_redis()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
