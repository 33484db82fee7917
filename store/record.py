"""The record: one chunk's bytes outside the device, self-describing and checksummed.

    header (160 bytes) | tokens (int32le) | payload | trailer (16 bytes)

`docs/records.md` has the header byte for byte. A record carries all that a reader must compare before
it believes the payload: namespace, keys, a cryptographic digest of the whole path, the tokens, shape,
dtype and codec. `decode_record` checks that the bytes are intact, `expect_record` that they are the right ones.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_128

from kvtrie.prefix_tree.errors import InputError, RecordError
from kvtrie.prefix_tree.keys import KEY_BYTES, TOKEN_BYTES
from kvtrie.prefix_tree.shape import ChunkShape
from kvtrie.store.codec import NO_CODEC, RawCodec

MAGIC = b"\x89KVTRIE\n"
"""Not text: a transfer that rewrites line ends or drops the high bit breaks it visibly."""
VERSION = 1
FLAG_MAC = 1
HEADER = struct.Struct("<8sHHHH32s16s16s32sIIIIIIIIQQ")
HEADER_BYTES = HEADER.size
TRAILER_BYTES = 16
DIGEST_BYTES = 32
DTYPE_IDS = {"float32": 1, "bfloat16": 2, "float16": 3}
"""Low byte of the dtype field: what the model computes with."""
FORMAT_IDS = {"raw": 0, "int8": 1, "fp8": 2}
"""High byte of the dtype field: how elements are stored. Older readers refuse all but `raw`, as `dtype`."""
NO_DTYPE = 0
CODEC_IDS = (NO_CODEC, RawCodec.id)
STORE_KEY_BYTES = range(16, 65)
"""Lengths a store key may have: below 16 bytes it can be guessed, above 64 BLAKE2b does not take it."""

_MAC_PERSON = b"kvtrie record 1"
_DTYPES = {
    identifier | format_id << 8: (dtype, kv_format)
    for dtype, identifier in DTYPE_IDS.items()
    for kv_format, format_id in FORMAT_IDS.items()
}

BytesLike = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Record:
    """A chunk record, or (depth 0) a namespace record. Fields are as in the header."""

    namespace: bytes
    """32 bytes: `Namespace.digest`."""
    key: bytes
    """16 bytes: chunk key."""
    parent_key: bytes
    """16 bytes: the parent's chunk key; for a first chunk the first 16 bytes of the namespace digest."""
    path_digest: bytes
    """32 bytes: see `keys.path_digests`; for a namespace record the namespace digest that seeds it."""
    depth: int
    """Chunks from the root, counting from 1; 0 is a namespace record."""
    codec: int
    """Id of the codec that wrote the payload; 0 in a namespace record."""
    shape: ChunkShape | None
    """Shape of the payload; None in a namespace record."""
    tokens: bytes
    """The chunk's own tokens as int32le; empty in a namespace record."""
    payload: bytes | memoryview
    """Encoded keys and values. Decoding makes it a read-only view of the record's bytes."""
    created_at_seconds: int
    """Unix time of writing, in seconds. For people; nothing depends on it."""


def encode_record(record: Record, store_key: bytes | None = None) -> bytes:
    """`record` as bytes, sealed with a keyed MAC where there is a store key and a checksum where not.

    Raises:
        RecordError: the record contradicts itself, e.g. `tokens` that are not one chunk of its shape.
        InputError: the store key is not of 16 to 64 bytes.
    """
    _check(record)
    shape = record.shape
    header = HEADER.pack(
        MAGIC,
        VERSION,
        0 if store_key is None else FLAG_MAC,
        record.codec,
        NO_DTYPE if shape is None else DTYPE_IDS[shape.dtype] | FORMAT_IDS[shape.kv_format] << 8,
        record.namespace,
        record.key,
        record.parent_key,
        record.path_digest,
        record.depth,
        len(record.tokens) // TOKEN_BYTES,
        0 if shape is None else shape.layers,
        0 if shape is None else shape.kv_heads,
        0 if shape is None else shape.chunk_tokens,
        0 if shape is None else shape.key_dim,
        0 if shape is None else shape.value_dim,
        0,
        len(record.payload),
        record.created_at_seconds,
    )
    parts = (header, record.tokens, record.payload)
    return b"".join((*parts, _trailer(parts, store_key)))


def decode_record(data: BytesLike, store_key: bytes | None = None) -> Record:
    """The record that `data` is, with its payload as a view of `data`, not a copy.

    Lengths are checked against `len(data)` before anything is read or allocated by them.

    Raises:
        RecordError: `data` is not exactly one intact record, or is not sealed with this store key: with
            one configured an unkeyed checksum is refused, without one a MAC cannot be checked.
        InputError: the store key is not of 16 to 64 bytes.
    """
    view = memoryview(data).cast("B").toreadonly()
    if len(view) < HEADER_BYTES + TRAILER_BYTES:
        raise RecordError("truncated", f"{len(view)} bytes, fewer than header and trailer have")
    (
        magic, version, flags, codec, dtype_id, namespace, key, parent_key, path_digest, depth, token_count,
        layers, kv_heads, chunk_tokens, key_dim, value_dim, reserved, payload_bytes, created_at_seconds,
    ) = HEADER.unpack_from(view)  # fmt: skip
    if magic != MAGIC:
        raise RecordError("magic", f"starts with {magic!r}")
    if version != VERSION or flags & ~FLAG_MAC or reserved:
        raise RecordError("version", f"version {version}, flags {flags:#x}; read is version {VERSION}")
    tokens_end = HEADER_BYTES + token_count * TOKEN_BYTES
    payload_end = tokens_end + payload_bytes
    if payload_end + TRAILER_BYTES != len(view):
        reason = "truncated" if payload_end + TRAILER_BYTES > len(view) else "length"
        raise RecordError(reason, f"{len(view)} bytes, its header says {payload_end + TRAILER_BYTES}")
    if (store_key is not None) != bool(flags & FLAG_MAC):
        carries, configured = ("a MAC", "no") if flags & FLAG_MAC else ("no MAC", "a")
        raise RecordError(
            "checksum", f"the record carries {carries}, but {configured} store key is configured"
        )
    if not hmac.compare_digest(_trailer((view[:payload_end],), store_key), bytes(view[payload_end:])):
        raise RecordError("checksum", "the trailer does not match the bytes before it")
    record = Record(
        namespace=namespace,
        key=key,
        parent_key=parent_key,
        path_digest=path_digest,
        depth=depth,
        codec=codec,
        shape=_shape(dtype_id, layers, kv_heads, chunk_tokens, key_dim, value_dim),
        tokens=bytes(view[HEADER_BYTES:tokens_end]),
        payload=view[tokens_end:payload_end],
        created_at_seconds=created_at_seconds,
    )
    _check(record)
    return record


def expect_record(
    record: Record,
    *,
    namespace: bytes,
    key: bytes,
    parent_key: bytes,
    path_digest: bytes,
    depth: int,
    tokens: bytes,
    shape: ChunkShape,
) -> None:
    """Checks that `record` is the one that was asked for.

    `parent_key` may be the 32-byte namespace digest, as in the chain of a first chunk; its first 16
    bytes count. `tokens` are the chunk's own, as int32le bytes.

    Raises:
        RecordError: with the reason of the first field that differs: `namespace`, `key`, `parent`,
            `path`, `depth`, `tokens`, `dtype` or `shape`.
    """
    for reason, found, wanted in (
        ("namespace", record.namespace, namespace),
        ("key", record.key, key),
        ("parent", record.parent_key, parent_key[:KEY_BYTES]),
        ("path", record.path_digest, path_digest),
    ):
        if found != wanted:
            raise RecordError(reason, f"record has {found.hex()}, asked for {wanted.hex()}")
    if record.depth != depth:
        raise RecordError("depth", f"record is at depth {record.depth}, asked for {depth}")
    # The tokens themselves are someone's prompt: they do not go into an error message.
    if record.tokens != tokens:
        raise RecordError("tokens", f"record {record.key.hex()} holds other tokens than were asked for")
    found_shape = record.shape
    if found_shape is None or (found_shape.dtype, found_shape.kv_format) != (shape.dtype, shape.kv_format):
        raise RecordError("dtype", f"record has {record.shape}, asked for {shape}")
    if record.shape != shape:
        raise RecordError("shape", f"record has {record.shape}, asked for {shape}")


def _check(record: Record) -> None:
    """Raises RecordError where the fields of `record` contradict each other or do not fit the header."""
    for reason, field, length in (
        ("namespace", record.namespace, DIGEST_BYTES),
        ("key", record.key, KEY_BYTES),
        ("parent", record.parent_key, KEY_BYTES),
        ("path", record.path_digest, DIGEST_BYTES),
    ):
        if len(field) != length:
            raise RecordError(reason, f"{len(field)} bytes, must be {length}")
    if not 0 <= record.depth < 1 << 32:
        raise RecordError("depth", f"{record.depth} does not fit 32 bits")
    if not 0 <= record.created_at_seconds < 1 << 64:
        raise RecordError("length", f"creation time {record.created_at_seconds} does not fit 64 bits")
    if record.codec not in CODEC_IDS or (record.codec == NO_CODEC) != (record.depth == 0):
        raise RecordError("codec", f"codec {record.codec} at depth {record.depth}")
    if record.depth <= 1 and record.parent_key != record.namespace[:KEY_BYTES]:
        raise RecordError("parent", f"a record at depth {record.depth} must have its namespace as its parent")
    if record.depth == 0:
        _check_namespace_record(record)
    else:
        _check_chunk_record(record)


def _check_namespace_record(record: Record) -> None:
    if record.key != record.parent_key:
        raise RecordError("key", "a namespace record is named by its namespace")
    if record.path_digest != record.namespace:
        raise RecordError("path", "the path of a namespace record is its namespace")
    if record.shape is not None:
        raise RecordError("shape", f"a namespace record has no shape, got {record.shape}")
    if record.tokens:
        raise RecordError("tokens", f"a namespace record has no tokens, got {len(record.tokens)} bytes")


def _check_chunk_record(record: Record) -> None:
    shape = record.shape
    if shape is None:
        raise RecordError("shape", f"a record at depth {record.depth} has a shape")
    if max(shape.layers, shape.kv_heads, shape.chunk_tokens, shape.key_dim, shape.value_dim) >= 1 << 32:
        raise RecordError("shape", f"{shape} does not fit 32 bits")
    if len(record.tokens) != shape.chunk_tokens * TOKEN_BYTES:
        raise RecordError("tokens", f"{len(record.tokens)} bytes, a chunk has {shape.chunk_tokens} tokens")
    if int(np.frombuffer(record.tokens, "<i4").min()) < 0:
        raise RecordError("tokens", "a token id is negative")
    if record.codec == RawCodec.id and len(record.payload) != shape.chunk_bytes:
        raise RecordError(
            "length", f"payload of {len(record.payload)} bytes, not the {shape.chunk_bytes} of {shape}"
        )


def _shape(
    dtype_id: int, layers: int, kv_heads: int, chunk_tokens: int, key_dim: int, value_dim: int
) -> ChunkShape | None:
    """Shape of a decoded header, None where all of it is zero."""
    if dtype_id == NO_DTYPE and not any((layers, kv_heads, chunk_tokens, key_dim, value_dim)):
        return None
    if dtype_id not in _DTYPES:
        raise RecordError("dtype", f"dtype id {dtype_id:#x}, known are {_DTYPES}")
    try:
        return ChunkShape(layers, kv_heads, chunk_tokens, key_dim, value_dim, *_DTYPES[dtype_id])
    except InputError as error:
        raise RecordError("shape", str(error)) from error


def _trailer(parts: tuple[BytesLike, ...], store_key: bytes | None) -> bytes:
    """16 bytes over `parts` end to end: xxh3_128, or BLAKE2b-128 keyed with the store key."""
    if store_key is None:
        checksum = xxh3_128()
        for part in parts:
            checksum.update(part)
        return checksum.digest()
    # An empty key would make BLAKE2b unkeyed: a MAC that anyone can compute.
    if len(store_key) not in STORE_KEY_BYTES:
        raise InputError(f"a store key has 16 to 64 bytes, got {len(store_key)}")
    mac = hashlib.blake2b(digest_size=TRAILER_BYTES, key=store_key, person=_MAC_PERSON)
    for part in parts:
        mac.update(part)
    return mac.digest()
