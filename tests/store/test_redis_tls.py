"""rediss://: the certificate counts, and the deadline holds under TLS too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from kvtrie.prefix_tree.errors import StoreUnavailable
from kvtrie.store import RedisStore


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `cert.pem` for 127.0.0.1 and its `key.pem`."""
    if shutil.which("openssl") is None:
        message = "openssl is not installed (apt-get install openssl)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=kvtrie test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture
def tls_server(start_redis, certificate: Path):
    """A redis-server that speaks TLS on `.tls_port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tls_port = probe.getsockname()[1]
    server = start_redis(
        *("--tls-port", str(tls_port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificate / "cert.pem"), "--tls-key-file", str(certificate / "key.pem")),
    )
    server.tls_port = tls_port
    return server


def test_large_values_round_trip(tls_server, certificate: Path) -> None:
    store = RedisStore(
        f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={certificate / 'cert.pem'}",
        deadline_seconds=10.0,
    )
    value = os.urandom(3_000_000)
    store.put_many([(b"a", value), (b"b", b"small")])
    assert store.get_many([b"a", b"b", b"c"]) == [value, b"small", None]
    assert store.get_many([b"b"]) == [b"small"]
    store.close()


def test_a_certificate_of_nobody_we_trust_is_an_outage(tls_server) -> None:
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        RedisStore(f"rediss://127.0.0.1:{tls_server.tls_port}").get_many([b"a"])


def test_a_certificate_of_another_host_is_an_outage(tls_server, certificate: Path) -> None:
    url = f"rediss://localhost:{tls_server.tls_port}?ssl_ca_certs={certificate / 'cert.pem'}"
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        RedisStore(url).get_many([b"a"])


def test_a_stopped_server_is_cut_off_by_the_deadline(tls_server, certificate: Path) -> None:
    url = f"rediss://127.0.0.1:{tls_server.tls_port}?ssl_ca_certs={certificate / 'cert.pem'}"
    store = RedisStore(url, deadline_seconds=1.0, retry_after_seconds=0.01)
    store.put_many([(b"a", b"1")])
    tls_server.stop()
    for call in (lambda: store.get_many([b"a"]), lambda: store.put_many([(b"a", bytes(64 << 20))])):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - started < 1.0 + 2.0
        time.sleep(0.05)
