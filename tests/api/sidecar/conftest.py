"""Real sidecar processes, real records, and a server that is no sidecar."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvtrie.api.cli import sidecar as command
from kvtrie.api.http.address import parse_address
from kvtrie.api.http.record_frames import Limits
from kvtrie.api.http.tenants import Tenants, load_tenants
from kvtrie.api.sidecar.run_sidecar import serve
from kvtrie.api.sidecar.sidecar import Sidecar, SidecarConfig
from kvtrie.prefix_tree import ChunkShape, Namespace
from kvtrie.testing import StoredPath
from kvtrie.testing.stored_path import SMALL_SHAPE

START_SECONDS = 40.0
SHAPE = SMALL_SHAPE

# Its server has imported all that a sidecar needs, so each process starts at once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["kvtrie.api.sidecar.run_sidecar", "kvtrie.api.cli.sidecar", "kvtrie.store"]
)


def serve_within(limits: Limits, options: dict[str, Any]) -> None:
    """What `kvtrie sidecar` does, with other limits than its own."""
    tenants = Tenants() if options["tenants"] is None else load_tenants(options["tenants"])
    config = SidecarConfig(memory_bytes=1 << 20, chunk_tokens=options["chunk_tokens"])
    sidecar = Sidecar(config, limits)
    serve(sidecar, tenants, [parse_address(text) for text in options["listen"]], lambda _: None)
    sidecar.close()


class SidecarProcess:
    """`kvtrie sidecar` in a process of its own, on a free port and on a Unix socket."""

    def __init__(self, directory: Path, options: dict[str, Any], limits: Limits | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.socket_path = directory / "s.sock"
        self.url = f"http://127.0.0.1:{self.port}"
        self.unix_url = f"unix://{self.socket_path}"
        self._limits = limits
        self._options: dict[str, Any] = {
            "listen": [self.url, self.unix_url],
            "memory": "1MiB",
            "chunk_tokens": SHAPE.chunk_tokens,
            "store": None,
            "tenants": None,
            "policy": "lru",
            **options,
        }
        self.start()

    def start(self) -> None:
        if self._limits is None:
            self.process = _PROCESSES.Process(target=command.run, args=(argparse.Namespace(**self._options),))
        else:
            self.process = _PROCESSES.Process(target=serve_within, args=(self._limits, self._options))
        self.process.start()
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/livez", timeout=1.0).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert self.process.is_alive(), "the sidecar ended"
            assert time.monotonic() < end, "the sidecar did not start"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL; works on a stopped process too."""
        self.process.kill()
        self.process.join()

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10.0, trust_env=False)


@pytest.fixture
def start_sidecar() -> Iterator[Callable[..., SidecarProcess]]:
    """Starts sidecars with further options; all of them end with the test."""
    started: list[SidecarProcess] = []
    with tempfile.TemporaryDirectory(prefix="kvtrie-sidecar-") as root:

        def start(limits: Limits | None = None, **options: object) -> SidecarProcess:
            directory = Path(root) / str(len(started))
            directory.mkdir()
            started.append(SidecarProcess(directory, options, limits))
            return started[-1]

        yield start
        for sidecar in started:
            sidecar.kill()


@pytest.fixture
def sidecar(start_sidecar: Callable[..., SidecarProcess]) -> SidecarProcess:
    """An open sidecar of 1 MiB."""
    return start_sidecar()


@pytest.fixture
def chain() -> Callable[..., StoredPath]:
    """Makes a path of chunks of `tokens` in a namespace."""

    def make(
        tokens: list[int],
        namespace: Namespace | None = None,
        shape: ChunkShape = SHAPE,
        store_key: bytes | None = None,
    ) -> StoredPath:
        namespace = namespace or Namespace(scope="tenant:anyone", chunk_tokens=shape.chunk_tokens)
        return StoredPath(namespace, tokens, shape=shape, store_key=store_key)

    return make


@pytest.fixture
def answering() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts a TCP server that treats each connection as told; returns its URL."""
    listeners: list[socket.socket] = []

    def start(treat: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def treat_quietly(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                treat(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=treat_quietly, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
