"""`kvtrie sidecar` itself: where it listens, how it stops, what it refuses."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvtrie.api.cli import sidecar as command
from kvtrie.api.http.address import parse_address
from kvtrie.api.http.listeners import listening
from kvtrie.api.http.request_guard import is_loopback_host
from kvtrie.prefix_tree.errors import InputError


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path: a Unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="kvtrie-") as name:
        yield Path(name)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


class TestRuns:
    def test_until_a_signal_and_leaves_no_socket_file(self, directory: Path) -> None:
        path = directory / "s.sock"
        program = "import sys; from kvtrie.api.cli import main; sys.exit(main())"
        argv = ["--listen", "http://127.0.0.1:0", "--listen", f"unix://{path}?mode=660", "--memory", "1MiB"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, "sidecar", *argv], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            shown = [process.stdout.readline().split()[-1] for _ in range(2)]
            assert shown[1] == f"unix://{path}"
            assert path.stat().st_mode & 0o777 == 0o660
            assert httpx.get(f"{shown[0]}/livez", trust_env=False).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            assert not path.exists()
        finally:
            process.kill()
            process.wait()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_kept_connection_does_not_keep_it(self, sidecar: Any, number: signal.Signals) -> None:
        with sidecar.http() as http:
            assert http.get("/livez").status_code == 200
            sidecar.signal(number)
            sidecar.process.join(10)
        assert sidecar.process.exitcode == 0
        assert not sidecar.socket_path.exists()

    def test_over_the_socket_file_of_a_killed_one(self, sidecar: Any) -> None:
        sidecar.kill()
        assert sidecar.socket_path.exists()
        sidecar.start()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(sidecar.socket_path))) as http:
            assert http.get("http://localhost/livez").status_code == 200


class TestRefuses:
    @pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1"])
    def test_the_network_without_tenants(self, host: str) -> None:
        with pytest.raises(InputError, match="--tenants"):
            run("--listen", f"http://{host}:0")

    def test_a_socket_in_use_and_a_file_that_is_none(self, sidecar: Any, directory: Path) -> None:
        with pytest.raises(InputError, match="another process listens there"):
            run("--listen", sidecar.unix_url)
        with pytest.raises(InputError, match="in use"):
            run("--listen", sidecar.url)
        (directory / "file").write_text("mine")
        with pytest.raises(InputError, match="no socket"):
            run("--listen", f"unix://{directory}/file")
        assert (directory / "file").read_text() == "mine"
        with pytest.raises(InputError, match="cannot listen"):
            run("--listen", f"unix://{directory}/none/s.sock")

    @pytest.mark.parametrize(
        ("argv", "named"),
        [
            (["--memory", "lots"], "lots"),
            (["--memory", "1KiB"], "--memory 1KiB is too small"),
            (["--memory", "1048575"], "give at least 1MiB"),
            (["--chunk-tokens", "0"], "chunk_tokens"),
            (["--listen", "unix:///tmp/x?mode=9"], "mode"),
            (["--listen", "https://127.0.0.1:1"], "TLS"),
            (["--store", "nothing"], "nothing"),
            (["--tenants", "/nowhere.toml"], "/nowhere.toml"),
        ],
    )
    def test_malformed_options(self, argv: list[str], named: str) -> None:
        with pytest.raises(InputError) as caught:
            run(*argv)
        assert named in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "said"), [("short", "16 to 64 bytes, got 5"), ("", "KVTRIE_STORE_KEY is empty")]
    )
    def test_a_store_key_that_is_none(self, monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
        monkeypatch.setenv("KVTRIE_STORE_KEY", key)
        with pytest.raises(InputError, match=said):
            run()


class TestListeners:
    def test_a_reply_over_tcp_does_not_wait_for_an_acknowledgement(self, directory: Path) -> None:
        addresses = [parse_address("http://127.0.0.1:0")]
        with listening(addresses) as (listener,):
            client = socket.create_connection(listener.socket.getsockname())
            accepted, _ = listener.socket.accept()
            with client, accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                # What asyncio looks at before it sets the option itself.
                assert accepted.proto == socket.IPPROTO_TCP

    def test_leave_a_socket_file_that_another_has_made_since(self, directory: Path) -> None:
        path = directory / "s.sock"
        with listening([parse_address(f"unix://{path}")]):
            assert path.stat().st_mode & 0o777 == 0o600
            os.unlink(path)
            other = socket.socket(socket.AF_UNIX)
            other.bind(str(path))
        assert path.exists()
        other.close()

    def test_nothing_is_left_where_a_later_one_fails(self, directory: Path) -> None:
        path = directory / "s.sock"
        addresses = [parse_address(f"unix://{path}"), parse_address("http://192.0.2.1:1")]
        with pytest.raises(InputError), listening(addresses):
            pass
        assert not path.exists()

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [(b"localhost", True), (b"127.0.0.9:1", True), (b"[::1]:80", True), (b"", False), (b"a.b", False),
         (b"10.0.0.1", False), (b"localhost.evil", False), (b"127.0.0.1.evil:80", False), (b"[::1", False)],
    )  # fmt: skip
    def test_loopback_names(self, host: bytes, loopback: bool) -> None:
        assert is_loopback_host(host) == loopback
