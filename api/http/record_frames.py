"""Binary bodies: records in frames, and the two lookups. Nothing is allocated by a length in them.

records:   ( u64le length | record )*          in path order, to the end of the body
get:       namespace digest (32) | chunk keys (16 each)
match:     namespace digest (32) | tokens (int32le each)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import KEY_BYTES, TOKEN_BYTES
from kvtrie.store.record import DIGEST_BYTES

SCOPE_HEADER = "Kvtrie-Scope"
"""Names the shared scope that a request is about, instead of the caller's own."""

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request to a server. The sidecar's client checks replies against the same limits."""

    max_record_bytes: int = 256 << 20
    """Longest record, so longest frame: what one connection can make either side hold."""
    max_body_bytes: int = 1 << 30
    """Longest put. Frames are taken as they come: this bounds time, not memory."""
    max_reply_bytes: int = 1 << 30
    """Most bytes of records in one reply; what does not fit is left off, as if it were not held."""
    max_keys: int = 1 << 14
    """Most keys in one get."""
    max_tokens: int = 1 << 21
    """Most tokens in one match."""
    request_seconds: float = 60.0
    """Most time for one request, body and reply included: a trickling peer is cut off."""
    header_seconds: float = 10.0
    """Most time until a connection has sent its first request's headers, or the rest of later ones."""
    max_connections: int = 512
    """Where each of them has a request under way, further ones are answered 503; /livez is answered."""
    spare_connections: int = 16
    """Connections beyond those, which /livez is answered on."""
    max_unknown_per_address: int = 64
    """Connections of one address that have shown no key yet; for a further one the oldest is closed."""
    max_connections_per_key: int = 256
    """Connections of one key; for a further one an idle one of that key is closed, or it is answered 429."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The parts of a get's or match's body."""

    namespace: bytes
    """32 bytes, as the client computed it."""
    rest: bytes
    """Keys or tokens, end to end: whole ones."""

    @property
    def keys(self) -> list[bytes]:
        """`rest` as chunk keys."""
        return [self.rest[at : at + KEY_BYTES] for at in range(0, len(self.rest), KEY_BYTES)]


def parse_get(body: bytes) -> Lookup:
    """The lookup that `body` is.

    Raises:
        InputError: too short, or not whole keys.
    """
    return _parse(body, KEY_BYTES, "16-byte keys")


def parse_match(body: bytes) -> Lookup:
    """The lookup that `body` is.

    Raises:
        InputError: too short, or not whole tokens.
    """
    return _parse(body, TOKEN_BYTES, "int32le tokens")


def _parse(body: bytes, unit_bytes: int, unit: str) -> Lookup:
    if len(body) < DIGEST_BYTES or (len(body) - DIGEST_BYTES) % unit_bytes:
        raise InputError(f"body of {len(body)} bytes is not a 32-byte namespace digest and whole {unit}")
    return Lookup(body[:DIGEST_BYTES], body[DIGEST_BYTES:])


def frame(records: Iterable[bytes]) -> bytes:
    """`records` as one body."""
    return b"".join(part for record in records for part in (frame_header(record), record))


def frame_header(record: bytes) -> bytes:
    """The bytes before `record` in a frame."""
    return _LENGTH.pack(len(record))


def framed_bytes(records: Iterable[bytes]) -> int:
    """Length of `frame(records)`."""
    return sum(_LENGTH.size + len(record) for record in records)


class FrameReader:
    """Splits a body into records as it arrives, holding at most one frame of it.

    Args:
        max_record_bytes: a longer frame ends the reading, before any of it is kept.
    """

    def __init__(self, max_record_bytes: int) -> None:
        self._max_record_bytes = max_record_bytes
        self._buffer = bytearray()

    @property
    def unfinished_bytes(self) -> int:
        """Bytes held of a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Records completed by `data`.

        Raises:
            InputError: a frame announces no bytes, or more than a record may have.
        """
        buffer = self._buffer
        buffer += data
        records, at = [], 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if not 1 <= length <= self._max_record_bytes:
                raise InputError(f"frame of {length} bytes, a record has 1 to {self._max_record_bytes}")
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                records.append(bytes(view[at + _LENGTH.size : end]))
            at = end
        del buffer[:at]
        return records

    def finish(self) -> None:
        """Checks that the body ended where a frame did.

        Raises:
            InputError: it is truncated.
        """
        if self._buffer:
            raise InputError(f"body ends {len(self._buffer)} bytes into a frame")
