"""Connections, bodies and keys without end, sent to a real process: others are served, and /livez answers."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvtrie.api.http.record_frames import Limits
from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree.errors import StoreError, StoreUnavailable

TENANTS = """
[admin]
api_key = "admin-key"
[tenants.acme]
api_key = "acme-key"
[tenants.bolt]
api_key = "bolt-key"
"""
HEAD = "POST /v1/records/put HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
Start = Callable[..., Any]
SECONDS = 30.0


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    return path


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    """Opens connections that end with the test."""
    opened: list[socket.socket] = []

    def connect(sidecar: Any, sent: bytes = b"") -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", sidecar.port), timeout=SECONDS))
        opened[-1].sendall(sent)
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes it before the test's patience ends."""
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def until(holds: Callable[[], bool]) -> None:
    """Waits for what the sidecar is about to do."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def metric(sidecar: Any, name: str, key: str | None = "admin-key") -> float:
    with sidecar.http(key) as http:
        text = http.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


class TestConnections:
    @pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: "])
    def test_that_ask_for_nothing_shut_nobody_out(
        self, start_sidecar: Start, tenants: Path, connect: Any, sent: bytes
    ) -> None:
        sidecar = start_sidecar(tenants=tenants)
        limits = Limits()
        silent = [connect(sidecar, sent) for _ in range(limits.max_connections + 100)]
        with sidecar.http("acme-key") as http:
            assert http.get("/livez").json() == {"live": True}
            assert http.get("/v1/tree").status_code == 200
        assert is_closed(silent[0])
        assert metric(sidecar, "kvtrie_sidecar_connections") <= limits.max_unknown_per_address + 2
        # Over the Unix socket they are another address's.
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(sidecar.socket_path))) as http:
            assert http.get("http://localhost/livez").status_code == 200

    @pytest.mark.parametrize("kept", [False, True])
    def test_that_never_end_a_head_are_closed(self, start_sidecar: Start, connect: Any, kept: bool) -> None:
        sidecar = start_sidecar(Limits(header_seconds=0.2))
        connection = connect(sidecar)
        if kept:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(1 << 16)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert is_closed(connection)
        assert metric(sidecar, "kvtrie_sidecar_connections_closed_total", None) == 1

    def test_livez_answers_where_every_place_is_taken(
        self, start_sidecar: Start, tenants: Path, connect: Any
    ) -> None:
        limits = Limits(max_connections=4, spare_connections=2)
        sidecar = start_sidecar(limits, tenants=tenants)
        head = HEAD.format(key="acme-key").encode() + b"Content-Length: 100\r\n\r\n"
        taken = [connect(sidecar, head) for _ in range(4)]
        with sidecar.http("acme-key") as http:
            until(lambda: http.get("/v1/tree").status_code == 503)
            assert "4 connections are in use" in http.get("/v1/tree").json()["error"]
            for _ in range(3):
                connect(sidecar)
            assert http.get("/livez").json() == {"live": True}
            taken[0].close()
            until(lambda: http.get("/v1/tree").status_code == 200)

    def test_of_one_key_take_no_other_key_s_places(
        self, start_sidecar: Start, tenants: Path, connect: Any
    ) -> None:
        limits = Limits(max_connections=8, max_connections_per_key=3)
        sidecar = start_sidecar(limits, tenants=tenants)
        head = HEAD.format(key="acme-key").encode() + b"Content-Length: 100\r\n\r\n"
        for _ in range(6):
            connect(sidecar, head)
        with sidecar.http("acme-key") as http:
            until(lambda: http.get("/v1/tree").status_code == 429)
            reply = http.get("/v1/tree")
        assert reply.headers["Retry-After"] == "1"
        assert "acme has too many connections" in reply.json()["error"]
        with sidecar.http("bolt-key") as http:
            assert http.get("/v1/tree").status_code == 200


class TestBodies:
    def test_unfinished_ones_are_charged_to_whoever_sends_them(
        self, start_sidecar: Start, tenants: Path, connect: Any, chain: Any
    ) -> None:
        """Four frames of 20 MiB, none of them whole, against a budget of 64 MiB: of one caller half of it."""
        sidecar = start_sidecar(tenants=tenants)
        before = resident_bytes(sidecar)
        head = HEAD.format(key="bolt-key").encode() + b"Transfer-Encoding: chunked\r\n\r\n"
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(4):
            connection = connect(sidecar, head + b"8\r\n" + struct.pack("<Q", 20 << 20) + b"\r\n")
            for _ in range(19):
                connection.sendall(piece)
        # The first is held; each further one runs into the 32 MiB, and is refused once it has waited.
        assert 19 << 20 <= metric(sidecar, "kvtrie_sidecar_receive_used_bytes") <= 32 << 20
        assert resident_bytes(sidecar) - before < 100 << 20
        acme = SidecarTier(sidecar.url, api_key="acme-key")
        path = chain(list(range(8)))
        for key, record in zip(path.keys, path.records):
            assert acme.offer(path.namespace, key, lambda record=record: record)
        assert acme.flush(10.0)
        assert acme.load(path.namespace, path.keys) == path.records
        acme.close()

    def test_a_frame_that_can_never_fit_is_refused_by_its_length(
        self, start_sidecar: Start, tenants: Path
    ) -> None:
        sidecar = start_sidecar(tenants=tenants)
        with sidecar.http("acme-key") as http:
            reply = http.post("/v1/records/put", content=struct.pack("<Q", (31 << 20) + 1) + b"x")
            assert reply.status_code == 400
            assert f"a record has 1 to {31 << 20}" in reply.json()["error"]
            # One byte less fits, with another frame behind it; what is in it is another matter.
            longest = struct.pack("<Q", 31 << 20) + bytes(31 << 20) + struct.pack("<Q", 1) + b"x"
            assert sum(http.post("/v1/records/put", content=longest).json()["rejected"].values()) == 2

    def test_a_lookup_that_never_ends_is_charged_too(
        self, start_sidecar: Start, tenants: Path, connect: Any
    ) -> None:
        sidecar = start_sidecar(tenants=tenants)
        head = HEAD.format(key="acme-key").replace("records/put", "match").encode()
        connect(sidecar, head + b"Content-Length: 4000000\r\n\r\n" + bytes(3_000_000))
        until(lambda: metric(sidecar, "kvtrie_sidecar_receive_used_bytes") == 3_000_000)

    def test_a_refused_one_that_never_ends_gets_its_reply(
        self, start_sidecar: Start, tenants: Path, connect: Any
    ) -> None:
        sidecar = start_sidecar(Limits(header_seconds=0.2), tenants=tenants)
        connection = connect(sidecar, HEAD.format(key="wrong").encode() + b"Content-Length: 100\r\n\r\nx")
        assert b" 401 " in connection.recv(1 << 16)
        assert is_closed(connection)

    def test_a_client_takes_a_refusal_for_no_outage(self, answering: Any, chain: Any) -> None:
        """A sidecar that is asked for too much at once is not down."""

        def treat(connection: socket.socket) -> None:
            asked = connection.recv(1 << 16)
            body, status = (b'{"error":"busy"}', b"429 Too Many") if b"/get" in asked else (b"{}", b"200 OK")
            connection.sendall(
                b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(body), body)
            )

        path = chain(list(range(8)))
        tier = SidecarTier(answering(treat))
        for _ in range(3):
            with pytest.raises(StoreError, match="busy") as caught:
                tier.load(path.namespace, path.keys)
            assert not isinstance(caught.value, StoreUnavailable)
        tier.close()


class TestWrongKeys:
    def test_are_limited_and_right_ones_are_not(self, start_sidecar: Start, tenants: Path) -> None:
        sidecar = start_sidecar(tenants=tenants)
        with sidecar.http("acme-key") as known:
            assert known.get("/v1/tree").status_code == 200
            with sidecar.http() as http:
                headers = [{"Authorization": f"Bearer guess-{number}"} for number in range(200)]
                seen = [http.get("/v1/tree", headers=guess).status_code for guess in headers]
            assert seen[:10] == [401] * 10
            assert set(seen) == {401, 429}
            assert known.get("/v1/tree").status_code == 200
        with sidecar.http("acme-key") as again:
            assert again.get("/v1/tree").status_code == 200, "on a new connection, too"
        assert metric(sidecar, "kvtrie_sidecar_wrong_keys_total", "acme-key") == 0, "the admin's only"

    def test_a_request_without_a_key_is_no_guess(self, start_sidecar: Start, tenants: Path) -> None:
        sidecar = start_sidecar(tenants=tenants)
        with sidecar.http() as http:
            assert {http.get("/v1/tree").status_code for _ in range(40)} == {401}
        with sidecar.http("acme-key") as http:
            assert http.get("/v1/tree").status_code == 200
        assert metric(sidecar, "kvtrie_sidecar_wrong_keys_total") == 0


def resident_bytes(sidecar: Any) -> int:
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10
