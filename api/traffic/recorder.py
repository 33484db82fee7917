"""Writing an anonymised request log while serving: `KVTRIE_TRACE=FILE`.

A line has salted ids of blocks, a time, a pseudonym of the scope and token counts; `log_form.py` has the form.
An id is a keyed hash (BLAKE2b) of a chunk key under a random salt that lives in this process only and is written
nowhere. So a log does not show whether a known prompt is in it, and logs of two processes cannot be compared.

The log is bounded: FILE grows to half of the limit, replaces FILE.1, and starts anew. A
disk that fails costs lines of the log, which are counted, and never a request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kvtrie.api.byte_size import parse_bytes
from kvtrie.api.traffic.log_form import FORMAT, VERSION, older_half
from kvtrie.prefix_tree.errors import InputError

DEFAULT_BYTES = 256 << 20
SMALLEST_BYTES = 4096
RETRY_SECONDS = 5.0
"""Time after a failed write in which lines are dropped without another try."""
_KNOWN = 1 << 16
"""Blocks of this half whose ids are remembered: a path that begins with one is written from there."""
_ID_MASK = (1 << 62) - 1

_LOG = logging.getLogger(__name__)


class TraceRecorder:
    """Appends requests to one log. Thread-safe; no method raises after construction.

    Args:
        path: the log; `%p` in it becomes the process id.
        chunk_tokens: tokens per block.
        source: `engine` or `sidecar`, for the header.
        most_bytes: of both halves together.

    Raises:
        InputError: the log cannot be opened for writing, or the limit is too small to be of use.
    """

    def __init__(
        self, path: str | Path, chunk_tokens: int, source: str, most_bytes: int = DEFAULT_BYTES
    ) -> None:
        if most_bytes < SMALLEST_BYTES:
            raise InputError(f"KVTRIE_TRACE_BYTES={most_bytes} is too small; give at least {SMALLEST_BYTES}")
        self.path = Path(str(path).replace("%p", str(os.getpid())))
        self.written = 0
        """Requests that were written."""
        self.dropped = 0
        """Requests that could not be written."""
        header = {"format": FORMAT, "version": VERSION, "chunk_tokens": chunk_tokens, "source": source}
        self._header = _line(header)
        self._half_bytes = most_bytes // 2
        self._salt = os.urandom(32)
        self._lock = threading.Lock()
        self._known: dict[bytes, int] = {}
        self._file: int | None = None
        self._size_bytes = 0
        self._not_before = 0.0
        self._has_warned = False
        try:
            self._open()
        except OSError as error:
            raise InputError(f"trace {self.path} cannot be written: {error.strerror or error}") from None

    def record(
        self,
        scope: str,
        keys: Sequence[bytes],
        *,
        prompt_tokens: int,
        output_tokens: int,
        arrived_at: float,
        asked_from: int = 0,
        asked_to: int | None = None,
    ) -> None:
        """Writes one request.

        Args:
            scope: of the request; only a pseudonym of it is written.
            keys: chunk keys in path order.
            arrived_at: unix seconds.
            asked_from: first block the cache was asked for.
            asked_to: end of those, None for all.
        """
        with self._lock:
            if time.monotonic() < self._not_before:
                self.dropped += 1
                return
            try:
                self._write(scope, keys, prompt_tokens, output_tokens, arrived_at, asked_from, asked_to)
            except OSError as error:
                self._failed(error)

    def close(self) -> None:
        """Closes the log; what is recorded after it is dropped."""
        with self._lock:
            self._not_before = float("inf")
            self._shut()

    def _write(
        self,
        scope: str,
        keys: Sequence[bytes],
        prompt_tokens: int,
        output_tokens: int,
        arrived_at: float,
        asked_from: int,
        asked_to: int | None,
    ) -> None:
        said: dict[str, object] = {
            "t": round(arrived_at, 3),
            "who": "t-" + self._hash(b"scope " + scope.encode("utf-8", "surrogatepass"), 6).hex(),
            "in": prompt_tokens,
            "out": output_tokens,
        }
        if asked_from:
            said["from"] = asked_from
        if asked_to is not None and asked_to < len(keys):
            said["to"] = asked_to
        if self._file is None:
            self._open()
        line, fresh = self._complete(said, keys)
        if self._size_bytes + len(line) > self._half_bytes and self._size_bytes > len(self._header):
            self._rotate()
            line, fresh = self._complete(said, keys)
        if self._size_bytes + len(line) > self._half_bytes:
            # A path longer than half the log.
            self.dropped += 1
            return
        self._append(line)
        self.written += 1
        if len(self._known) + len(fresh) > _KNOWN:
            self._known.clear()
        self._known.update(fresh)

    def _complete(self, said: dict[str, object], keys: Sequence[bytes]) -> tuple[bytes, dict[bytes, int]]:
        """The line, written from the deepest block that this half knows; and the ids that are new in it."""
        known = len(keys)
        while known and keys[known - 1] not in self._known:
            known -= 1
        fresh = {key: int.from_bytes(self._hash(key, 8), "little") & _ID_MASK for key in keys[known:]}
        after = {"after": self._known[keys[known - 1]]} if known else {}
        return _line({**said, **after, "ids": [fresh[key] for key in keys[known:]]}), fresh

    def _hash(self, content: bytes, size_bytes: int) -> bytes:
        return hashlib.blake2b(content, digest_size=size_bytes, key=self._salt).digest()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(self.path, flags, 0o600)
        self._size_bytes = os.fstat(self._file).st_size
        self._known.clear()
        if self._size_bytes + len(self._header) > self._half_bytes:
            self._rotate()
        else:
            self._append(self._header)

    def _rotate(self) -> None:
        self._shut()
        os.replace(self.path, older_half(self.path))
        self._open()

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        written = os.write(self._file, line)
        self._size_bytes += written
        if written < len(line):
            # A full disk takes a part. What is there is cut off again, or the next line would be unreadable.
            os.ftruncate(self._file, self._size_bytes - written)
            raise OSError("the disk is full")

    def _failed(self, error: OSError) -> None:
        self.dropped += 1
        self._not_before = time.monotonic() + RETRY_SECONDS
        self._shut()
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning("trace %s cannot be written (%s): requests go on, unrecorded", self.path, error)

    def _shut(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.close(file)
            except OSError as error:
                _LOG.debug("closing trace %s: %s", self.path, error)


def recorder_from_environment(chunk_tokens: int, source: str) -> TraceRecorder | None:
    """The recorder that `KVTRIE_TRACE` and `KVTRIE_TRACE_BYTES` configure; None without `KVTRIE_TRACE`.

    Raises:
        InputError: see `TraceRecorder`; also a malformed size.
    """
    path = os.environ.get("KVTRIE_TRACE")
    if not path:
        return None
    most_bytes = os.environ.get("KVTRIE_TRACE_BYTES")
    return TraceRecorder(
        path, chunk_tokens, source, DEFAULT_BYTES if not most_bytes else parse_bytes(most_bytes)
    )


def _line(said: dict[str, object]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"
