"""How one chunk's keys and values are laid out in a record's payload.

The `raw` layout, per layer: keys `[kv_heads, chunk_tokens, key_dim]`, then values `[kv_heads,
chunk_tokens, value_dim]`, C order, little-endian elements (bfloat16 as its 2 raw bytes). Where the pool
is quantised an element is one byte, and the keys are followed by their scales, fp32 `[kv_heads,
chunk_tokens]`, before the values come, and those by theirs. Codecs move bytes and never look at
elements, so a bfloat16 that NumPy cannot name passes through bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvtrie.prefix_tree.errors import InputError, RecordError
from kvtrie.prefix_tree.shape import ChunkShape

ByteArray = npt.NDArray[np.uint8]

NO_CODEC = 0
"""Codec id of a record that holds no keys and values: a namespace record."""


class KeysValues(NamedTuple):
    """One chunk's bytes; the caller reinterprets them in its dtype with `.view(...)`."""

    keys: ByteArray
    """uint8 `[layers, key_bytes]`: elements, then their scales where there are any."""
    values: ByteArray
    """uint8 `[layers, value_bytes]`, likewise."""


class Codec(Protocol):
    """Turns one chunk's keys and values into a payload and back, losslessly."""

    @property
    def id(self) -> int:
        """Name of this codec in a record's header."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of every payload this codec writes."""

    def encode(self, keys: ByteArray, values: ByteArray) -> bytes:
        """The payload of keys `[layers, key_bytes]` and values `[layers, value_bytes]`, both uint8.

        Raises:
            InputError: the arrays are not of this codec's shape, or not uint8.
        """

    def decode(self, payload: bytes | memoryview) -> KeysValues:
        """Keys and values of `payload`, read-only where `payload` is.

        Raises:
            RecordError: `length`, the payload is not one of this codec's shape.
        """


@dataclass(frozen=True, slots=True)
class RawCodec:
    """The pool's own elements, layer by layer, keys before values. Decoding copies nothing."""

    shape: ChunkShape
    id: ClassVar[int] = 1

    @property
    def payload_bytes(self) -> int:
        """Bytes of every payload: exactly the chunk's."""
        return self.shape.chunk_bytes

    def encode(self, keys: ByteArray, values: ByteArray) -> bytes:
        """The payload of keys `[layers, key_bytes]` and values `[layers, value_bytes]`, in one copy.

        Raises:
            InputError: the arrays are not of this codec's shape, or not uint8.
        """
        for name, array, row_bytes in (
            ("keys", keys, self.shape.key_bytes),
            ("values", values, self.shape.value_bytes),
        ):
            if array.dtype != np.uint8 or array.shape != (self.shape.layers, row_bytes):
                raise InputError(
                    f"{name} must be uint8 ({self.shape.layers}, {row_bytes}), "
                    f"got {array.dtype} {array.shape}"
                )
        # join takes rows as buffers, so contiguous rows are copied once, into the result.
        rows = zip(map(np.ascontiguousarray, keys), map(np.ascontiguousarray, values))
        return b"".join(part.data for row in rows for part in row)

    def decode(self, payload: bytes | memoryview) -> KeysValues:
        """Views of `payload` as keys and values; they keep it alive.

        Raises:
            RecordError: `length`, the payload is not `payload_bytes` long.
        """
        if len(payload) != self.payload_bytes:
            raise RecordError("length", f"payload of {len(payload)} bytes, expected {self.payload_bytes}")
        rows = np.frombuffer(payload, np.uint8).reshape(self.shape.layers, -1)
        return KeysValues(rows[:, : self.shape.key_bytes], rows[:, self.shape.key_bytes :])
