"""A sidecar that is dead, hung, slow or lying costs one request its deadline, and later ones nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest

from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree.errors import InputError, StoreError, StoreUnavailable

DEADLINE = 0.5
Chains = Callable[..., Any]
Answering = Callable[[Callable[[socket.socket], None]], str]


def load_fails(tier: SidecarTier, path: Any) -> float:
    """Seconds that a failing load took."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        tier.load(path.namespace, path.keys)
    return time.monotonic() - began


def comes_back(tier: SidecarTier, path: Any) -> list[bytes]:
    end = time.monotonic() + 20.0
    while True:
        try:
            return tier.load(path.namespace, path.keys)
        except StoreError:
            assert time.monotonic() < end, "the client did not come back"
            time.sleep(0.05)


def offer(tier: SidecarTier, path: Any) -> None:
    for key, record in zip(path.keys, path.records):
        tier.offer(path.namespace, key, lambda record=record: record)
    assert tier.flush(10.0)


def test_a_killed_sidecar_is_an_outage_until_it_is_back(sidecar: Any, chain: Chains) -> None:
    path = chain(list(range(8)))
    tier = SidecarTier(sidecar.url, deadline_seconds=DEADLINE)
    offer(tier, path)
    assert tier.load(path.namespace, path.keys) == path.records
    sidecar.kill()
    load_fails(tier, path)
    assert not tier.offer(path.namespace, path.keys[0], lambda: pytest.fail("made for nothing"))
    assert tier.stats()["dropped_down"] == 1
    sidecar.start()
    assert comes_back(tier, path) == []
    offer(tier, path)
    assert comes_back(tier, path) == path.records
    tier.close()


def test_a_stopped_sidecar_makes_one_caller_wait_for_the_deadline(sidecar: Any, chain: Chains) -> None:
    path = chain(list(range(8)))
    tier = SidecarTier(sidecar.unix_url, deadline_seconds=DEADLINE)
    offer(tier, path)
    sidecar.signal(SIGSTOP)
    try:
        waits = [load_fails(tier, path) for _ in range(200)]
        # All but the first raise at once, whatever the machine's load: 199 deadlines would be 100 s.
        assert sum(waits[1:]) < 20 * DEADLINE
    finally:
        sidecar.signal(SIGCONT)
    assert comes_back(tier, path) == path.records
    tier.close()


def test_an_unreachable_sidecar_is_no_error_at_construction(chain: Chains) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        tier = SidecarTier(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert tier.stats()["probe_failures"] == 1
    load_fails(tier, chain([1, 2, 3, 4]))
    tier.close()
    gone = SidecarTier("unix:///nowhere/kvtrie.sock")
    assert gone.stats()["probe_failures"] == 1
    gone.close()
    gone.close()
    load_fails(gone, chain([1, 2, 3, 4]))


def after_probe(treat: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Answers the client's probe as a sidecar does, and everything else with `treat`."""

    def answer(connection: socket.socket) -> None:
        if b"/v1/match" in connection.recv(1 << 16, socket.MSG_PEEK):
            connection.recv(1 << 16)
            connection.sendall(ok(b'{"chunks":0,"tokens":0}', b"Connection: close\r\n"))
        else:
            treat(connection)

    return answer


def trickle(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(100000):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def trickle_frames(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"\xff\0\0\0\0\0\0\0")
    while True:
        connection.sendall(b"\0")
        time.sleep(0.02)


def saying(reply: bytes) -> Callable[[socket.socket], None]:
    def say(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    return say


def ok(body: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


@pytest.mark.parametrize(
    "treat",
    [
        trickle,
        trickle_frames,
        lambda connection: connection.recv(1),
        saying(b""),
        saying(b"\x80\x81garbage\r\n\r\n"),
        saying(b"+OK redis here\r\n"),
        saying(ok(b"not frames")),
        saying(ok(b"\xff" * 8 + b"x")),
        saying(ok((b"\1" + bytes(7) + b"x") * 3)),
        saying(ok(b"", b"Content-Encoding: gzip\r\n")),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"),
        saying(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[["),
        saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_what_is_no_sidecar_is_an_outage_within_the_deadline(
    answering: Answering, chain: Chains, treat: Callable[[socket.socket], None]
) -> None:
    path = chain(list(range(8)))
    for probed, url in ((False, answering(treat)), (True, answering(after_probe(treat)))):
        began = time.monotonic()
        tier = SidecarTier(url, deadline_seconds=0.3)
        load_fails(tier, path)
        # Generous to a busy machine; the trickling ones would go on for half an hour.
        assert time.monotonic() - began < 10.0
        if probed:
            assert "probe_failures" not in tier.stats()
        assert tier.stats()["load_outages"] == 1
        tier.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:7070",
        "http://",
        "http://host",
        "ftp://h:1",
        "unix://s.sock",
        "http://h:1/x",
        "unix:///",
    ],
)
def test_a_malformed_url_is_an_input_error(url: str) -> None:
    with pytest.raises(InputError, match="address"):
        SidecarTier(url)


def test_a_deadline_of_nothing_is_an_input_error() -> None:
    with pytest.raises(InputError, match="deadline_seconds"):
        SidecarTier("http://127.0.0.1:1", deadline_seconds=0.0)
