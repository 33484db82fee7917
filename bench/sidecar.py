"""Round trips to a sidecar over TCP and over its Unix socket: a match on a kept connection, and a load of 8 chunks.

Both go through one sidecar process, in turns, so that their ratio says nothing of the machine's other load.
"""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from bench.measure import seconds
from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree import ChunkShape, Namespace
from kvtrie.prefix_tree.keys import TOKEN_BYTES, chunk_keys, path_digests
from kvtrie.store import RawCodec, Record, encode_record

SHAPE = ChunkShape(layers=2, kv_heads=2, chunk_tokens=8, key_dim=8, value_dim=8, dtype="float32")
CHUNKS = 8
ROUNDS = 200

_PROGRAM = "import sys; from kvtrie.api.cli import main; sys.exit(main())"


def run() -> dict[str, float]:
    """Median milliseconds of each, and TCP's over the Unix socket's. Checks first that both answer right."""
    with tempfile.TemporaryDirectory(prefix="kvtrie-bench-") as directory:
        path = Path(directory) / "s.sock"
        options = ["--memory", "8MiB", "--chunk-tokens", str(SHAPE.chunk_tokens)]
        listen = ["--listen", "http://127.0.0.1:0", "--listen", f"unix://{path}"]
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, "sidecar", *options, *listen], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found is not None, "the sidecar did not start"
            process.stdout.readline()
            return _measure(int(found[1]), path)
        finally:
            process.terminate()
            process.wait()


def _measure(port: int, path: Path) -> dict[str, float]:
    namespace, keys, records = _chunks()
    tiers = {"tcp": SidecarTier(f"http://127.0.0.1:{port}"), "unix": SidecarTier(f"unix://{path}")}
    asking: dict[str, http.client.HTTPConnection] = {
        "tcp": http.client.HTTPConnection("127.0.0.1", port),
        "unix": _UnixConnection(path),
    }
    try:
        for key, record in zip(keys, records):
            tiers["unix"].offer(namespace, key, lambda record=record: record)
        assert tiers["unix"].flush(10.0)
        for tier in tiers.values():
            assert tier.load(namespace, keys) == records, "not what was stored"
        body = namespace.digest + _tokens().tobytes()
        calls: dict[str, Callable[[], object]] = {}
        for name, connection in asking.items():
            assert _match(connection, body) == b'{"chunks":8,"tokens":64}', "not what was stored"
            calls[f"match_{name}"] = lambda connection=connection: _match(connection, body)
            calls[f"load_{name}"] = lambda tier=tiers[name]: tier.load(namespace, keys)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                times[name].append(1e3 * seconds(call))
        figures = {f"sidecar_{name}_ms": median(taken) for name, taken in times.items()}
        for question in ("match", "load"):
            tcp, unix = figures[f"sidecar_{question}_tcp_ms"], figures[f"sidecar_{question}_unix_ms"]
            figures[f"sidecar_{question}_tcp_over_unix"] = tcp / unix
        return figures
    finally:
        for tier in tiers.values():
            tier.close()
        for connection in asking.values():
            connection.close()


def _match(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    connection.request("POST", "/v1/match", body=body)
    return connection.getresponse().read()


def _tokens() -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Of the chunks, and one more, which a match leaves to be computed."""
    return np.arange(CHUNKS * SHAPE.chunk_tokens + 1, dtype=np.int32)


def _chunks() -> tuple[Namespace, list[bytes], list[bytes]]:
    """A path of chunks: its namespace, keys and records."""
    namespace = Namespace(scope="tenant:bench", chunk_tokens=SHAPE.chunk_tokens)
    token_bytes_per_chunk = SHAPE.chunk_tokens * TOKEN_BYTES
    tokens = _tokens().tobytes()[: CHUNKS * token_bytes_per_chunk]
    keys = list(chunk_keys(namespace.digest, tokens, SHAPE.chunk_tokens))
    paths = list(path_digests(namespace.digest, tokens, SHAPE.chunk_tokens))
    records = [
        encode_record(
            Record(
                namespace=namespace.digest,
                key=key,
                parent_key=keys[place - 1] if place else namespace.digest[: len(key)],
                path_digest=paths[place],
                depth=place + 1,
                codec=RawCodec.id,
                shape=SHAPE,
                tokens=tokens[place * token_bytes_per_chunk : (place + 1) * token_bytes_per_chunk],
                payload=bytes(SHAPE.chunk_bytes),
                created_at_seconds=1,
            )
        )
        for place, key in enumerate(keys)
    ]
    return namespace, keys, records


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """See `HTTPConnection.connect`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))
