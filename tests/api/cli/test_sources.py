"""Where snapshots come from, and what happens when what comes is none."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMANDS = [["dump"], ["stats"], ["explain", "--tokens", "1,2,3,4,5"]]
KEY = "k3y"


class Sidecar(http.server.BaseHTTPRequestHandler):
    """Answers `GET /v1/tree` with `server.body`, for whoever has the key."""

    def do_GET(self) -> None:
        body: bytes = self.server.body  # type: ignore[attr-defined]
        allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
        self.send_response(404 if self.path != "/v1/tree" else 200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return ""

    def handle(self) -> None:
        # A client that has read enough may leave before the server has finished.
        with contextlib.suppress(OSError):
            super().handle()


@pytest.fixture(params=["tcp", "unix"])
def sidecar(request) -> Iterator[tuple[str, socketserver.BaseServer]]:
    with tempfile.TemporaryDirectory(prefix="kvtrie-") as directory:
        if request.param == "tcp":
            server: socketserver.BaseServer = http.server.HTTPServer(("127.0.0.1", 0), Sidecar)
            url = f"http://127.0.0.1:{server.server_address[1]}"
        else:
            server = socketserver.UnixStreamServer(f"{directory}/s", Sidecar)
            url = f"unix://{directory}/s"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield url, server
        server.shutdown()
        server.server_close()


class TestSidecar:
    def test_the_key_is_sent(self, scene, kvtrie, sidecar, monkeypatch):
        scene.put(scene.root(), [1, 2, 3, 4])
        url, server = sidecar
        server.body = scene.snapshot().to_json().encode()
        assert "chunk 1" in kvtrie("dump", "--url", url, "--api-key", KEY).out
        monkeypatch.setenv("KVTRIE_API_KEY", KEY)
        assert "chunk 1" in kvtrie("dump", "--url", url).out
        ran = kvtrie("dump", "--url", url, "--api-key", "wr0ng")
        assert ran.code == 2
        assert "wr0ng" not in ran.err

    def test_no_key(self, kvtrie, sidecar):
        sidecar[1].body = b"{}"
        ran = kvtrie("stats", "--url", sidecar[0])
        assert ran.code == 2
        assert "KVTRIE_API_KEY" in ran.err

    @pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b"<html>"])
    def test_an_answer_that_is_no_snapshot(self, kvtrie, sidecar, body):
        sidecar[1].body = body
        assert kvtrie("stats", "--url", sidecar[0], "--api-key", KEY).code == 2

    @pytest.mark.parametrize("command", COMMANDS)
    def test_nobody_there(self, kvtrie, command, tmp_path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", f"unix://{tmp_path}/none"):
            ran = kvtrie(command[0], *command[1:], "--url", url)
            assert ran.code == 3
            assert "kvtrie sidecar" in ran.err

    @pytest.mark.parametrize(
        "url", ["", "ftp://x", "127.0.0.1:7070", "unix://", "http://h:99999", "http://\x1b[2J:1"]
    )
    def test_a_malformed_url(self, kvtrie, url):
        assert kvtrie("stats", "--url", url).code == 2

    @pytest.mark.parametrize("key", ["a\nb", "ü", "a\r\nX: y"])
    def test_a_key_that_is_no_header(self, kvtrie, key):
        assert kvtrie("stats", "--url", "http://127.0.0.1:9", "--api-key", key).code == 2


class TestFiles:
    def test_standard_input(self, scene, kvtrie, monkeypatch):
        scene.put(scene.root(), [1, 2, 3, 4])
        document = scene.snapshot().to_json().encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(document)))
        assert "chunk 1" in kvtrie("dump", "-").out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_none_or_several_sources(self, scene, kvtrie, command):
        name, *rest = command
        assert kvtrie(name, *rest).code == 2
        assert kvtrie(name, scene.file(), *rest, "--store", "memory").code == 2

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        "content", [b"", b"not json", b"[]", b'{"format": "kvtrie-snapshot"}', b"[" * 100_000]
    )
    def test_not_a_snapshot(self, kvtrie, tmp_path, command, content):
        path = tmp_path / "x"
        path.write_bytes(content)
        assert kvtrie(command[0], str(path), *command[1:]).code == 2

    def test_no_such_file(self, kvtrie, tmp_path):
        assert kvtrie("dump", str(tmp_path / "none\n\x1b[2J")).code == 2
        assert kvtrie("dump", str(tmp_path)).code == 2

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (("nodes", 0, "tokens"), "text"),
            (("nodes", 0, "tokens"), [1]),
            (("nodes", 0, "tokens"), [1, 2, 3, -4]),
            (("nodes", 0, "tokens"), [1, 2, 3, True]),
            (("nodes", 0, "parent"), 0),
            (("nodes", 0, "parent"), 77),
            (("nodes", 1, "id"), 0),
            (("nodes", 1, "depth"), 7),
            (("nodes", 0, "namespace"), 9),
            (("nodes", 0, "namespace"), -1),
            (("nodes", 0, "key"), "\x1b[2J"),
            (("nodes", 0, "hits"), 10**400),
            (("nodes", 0, "tiers"), {"device": "much"}),
            (("nodes", 0, "pin"), {"name": 1, "expires_at": None}),
            (("nodes", 0, "last_used_at"), float("nan")),
            (("taken_at",), float("inf")),
            (("taken_at",), None),
            (("namespaces", 0, "digest"), "zz"),
            (("namespaces", 0, "fields", "chunk_tokens"), 0),
            (("namespaces", 0, "fields", "chunk_tokens"), True),
            (("counters",), {"\x1b[2J": "x"}),
            (("tiers", 0, "scopes"), {"a": 1}),
            (("tombstones",), [{}]),
            (("chunk_tokens",), "4"),
        ],
    )
    def test_a_damaged_value(self, scene, kvtrie, where, value):
        scene.put(scene.root(), [1, 2, 3, 4, 5, 6, 7, 8])
        path = Path(scene.file())
        document = json.loads(path.read_text())
        place = document
        for step in where[:-1]:
            place = place[step]
        place[where[-1]] = value
        path.write_text(json.dumps(document))
        for name, *rest in COMMANDS:
            assert kvtrie(name, str(path), *rest).code == 2

    def test_times_no_calendar_has(self, scene, kvtrie):
        match = scene.put(scene.root(), [1, 2, 3, 4])
        scene.tree.pin(match.node, "for ever", 1e18)
        scene.now = -1e15
        assert kvtrie("dump", scene.file()).code == 0


class TestStores:
    @pytest.mark.parametrize("url", ["redis://", "mongo://x", "memory://nonsense", "http://127.0.0.1:1", ""])
    def test_a_malformed_url(self, kvtrie, url):
        assert kvtrie("dump", "--store", url).code == 2

    def test_nobody_there(self, kvtrie):
        ran = kvtrie("dump", "--store", "redis://user:hunter2@127.0.0.1:1/0")
        assert ran.code == 3
        assert "hunter2" not in ran.err

    def test_memory_is_empty(self, kvtrie):
        assert "total  0 chunks" in kvtrie("dump", "--store", "memory").out
