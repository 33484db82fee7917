"""Records: what comes back is what went in, and nothing else is ever taken for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrie.prefix_tree.errors import InputError, RecordError
from kvtrie.prefix_tree.keys import as_tokens, chunk_keys, path_digests
from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.shape import DTYPE_BYTES, KV_FORMATS, ChunkShape
from kvtrie.store import (
    RawCodec,
    Record,
    decode_namespace,
    decode_record,
    encode_namespace_record,
    encode_record,
    expect_record,
)
from kvtrie.store.record import DTYPE_IDS, FORMAT_IDS, HEADER_BYTES, TRAILER_BYTES, _trailer

SHAPE = ChunkShape(layers=2, kv_heads=1, chunk_tokens=4, key_dim=2, value_dim=1, dtype="float16")
NAMESPACE = Namespace(scope="tenant:acme", weights="ab" * 32, chunk_tokens=4)
TOKENS = as_tokens([5, 0, 2_147_483_647, 7, 1, 2, 3, 4]).tobytes()
KEYS = chunk_keys(NAMESPACE.digest, TOKENS, 4)
PATHS = path_digests(NAMESPACE.digest, TOKENS, 4)
STORE_KEY = b"sixteen byte key"
FIRST = Record(
    namespace=NAMESPACE.digest,
    key=KEYS[0],
    parent_key=NAMESPACE.digest[:16],
    path_digest=PATHS[0],
    depth=1,
    codec=RawCodec.id,
    shape=SHAPE,
    tokens=TOKENS[:16],
    payload=bytes(range(48)),
    created_at_seconds=1_700_000_000,
)
SECOND = dataclasses.replace(
    FIRST, key=KEYS[1], parent_key=KEYS[0], path_digest=PATHS[1], depth=2, tokens=TOKENS[16:]
)
WANTED = {
    "namespace": NAMESPACE.digest,
    "key": KEYS[1],
    "parent_key": KEYS[0],
    "path_digest": PATHS[1],
    "depth": 2,
    "tokens": TOKENS[16:],
    "shape": SHAPE,
}


def resealed(data: bytes | bytearray, store_key: bytes | None = None) -> bytes:
    """`data` with the trailer its bytes call for: damage that no checksum can see."""
    body = bytes(data[:-TRAILER_BYTES])
    return body + _trailer((body,), store_key)


def reason(data: bytes | bytearray, store_key: bytes | None = None) -> str:
    with pytest.raises(RecordError) as caught:
        decode_record(data, store_key)
    return caught.value.reason


@pytest.mark.parametrize("record", [FIRST, SECOND])
@pytest.mark.parametrize("store_key", [None, STORE_KEY])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_round_trip(record: Record, store_key: bytes | None, kind: type) -> None:
    data = encode_record(record, store_key)
    assert len(data) == HEADER_BYTES + len(record.tokens) + len(record.payload) + TRAILER_BYTES
    decoded = decode_record(kind(data), store_key)
    assert decoded == record
    assert isinstance(decoded.payload, memoryview)
    assert decoded.payload.readonly


def test_decoding_does_not_copy_the_payload() -> None:
    data = encode_record(FIRST)
    payload = decode_record(data).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is data


@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    chunk_tokens=st.integers(1, 5),
    key_dim=st.integers(1, 4),
    value_dim=st.integers(1, 4),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    kv_format=st.sampled_from(KV_FORMATS),
    depth=st.integers(2, 2**32 - 1),
    created=st.integers(0, 2**64 - 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_record_round_trips(
    layers, heads, chunk_tokens, key_dim, value_dim, dtype, kv_format, depth, created, data
):
    shape = ChunkShape(layers, heads, chunk_tokens, key_dim, value_dim, dtype, kv_format)
    tokens = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=chunk_tokens, max_size=chunk_tokens))
    record = Record(
        namespace=data.draw(st.binary(min_size=32, max_size=32)),
        key=data.draw(st.binary(min_size=16, max_size=16)),
        parent_key=data.draw(st.binary(min_size=16, max_size=16)),
        path_digest=data.draw(st.binary(min_size=32, max_size=32)),
        depth=depth,
        codec=RawCodec.id,
        shape=shape,
        tokens=as_tokens(tokens).tobytes(),
        payload=data.draw(st.binary(min_size=shape.chunk_bytes, max_size=shape.chunk_bytes)),
        created_at_seconds=created,
    )
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("store_key", [None, STORE_KEY])
def test_every_changed_byte_is_rejected(store_key: bytes | None) -> None:
    data = bytearray(encode_record(SECOND, store_key))
    for position, right in enumerate(data):
        for wrong in range(256):
            if wrong != right:
                data[position] = wrong
                with pytest.raises(RecordError):
                    decode_record(data, store_key)
        data[position] = right
    assert decode_record(data, store_key) == SECOND


@pytest.mark.parametrize("store_key", [None, STORE_KEY])
def test_every_truncation_and_extension_is_rejected(store_key: bytes | None) -> None:
    data = encode_record(SECOND, store_key)
    for length in range(len(data)):
        assert reason(data[:length], store_key) == "truncated"
    for extra in (1, 4, 4096):
        assert reason(data + bytes(extra), store_key) == "length"


def test_every_changed_header_byte_is_rejected_even_where_the_checksum_is_made_to_fit() -> None:
    """Damage before sealing, or a writer that lies: decode or expect must still see it."""
    data = bytearray(encode_record(SECOND))
    created_at = range(HEADER_BYTES - 8, HEADER_BYTES)
    for position in range(HEADER_BYTES + len(SECOND.tokens)):
        if position in created_at:  # nothing depends on it
            continue
        data[position] ^= 0xFF
        with pytest.raises(RecordError):
            expect_record(decode_record(resealed(data)), **WANTED)
        data[position] ^= 0xFF
    expect_record(decode_record(resealed(data)), **WANTED)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "why"),
    [
        (0, "8s", b"\x89PNG\r\n\x1a\n", "magic"),
        (8, "<H", 2, "version"),
        (10, "<H", 2, "version"),
        (140, "<I", 1, "version"),
        (12, "<H", 0, "codec"),
        (12, "<H", 77, "codec"),
        (14, "<H", 0, "dtype"),
        (14, "<H", 9, "dtype"),
        (14, "<H", 0x0100, "dtype"),
        (14, "<H", 0x0301, "dtype"),
        (14, "<H", 0x0103, "length"),
        (112, "<I", 1, "parent"),
        (116, "<I", 0xFFFFFFFF, "truncated"),
        (116, "<I", 3, "length"),
        (120, "<I", 0, "shape"),
        (120, "<I", 0xFFFFFFFF, "length"),
        (128, "<I", 5, "tokens"),
        (132, "<I", 0xFFFFFFFF, "length"),
        (144, "<Q", 0xFFFFFFFFFFFFFFFF, "truncated"),
        (144, "<Q", 1 << 40, "truncated"),
        (144, "<Q", 0, "length"),
        (160, "<i", -1, "tokens"),
    ],
)
def test_lies_in_a_well_sealed_record_are_named(offset: int, layout: str, value: object, why: str) -> None:
    data = bytearray(encode_record(SECOND))
    struct.pack_into(layout, data, offset, value)
    assert reason(resealed(data)) == why


def test_a_lying_length_allocates_nothing() -> None:
    data = bytearray(encode_record(SECOND))
    struct.pack_into("<Q", data, 144, 1 << 33)
    struct.pack_into("<I", data, 116, 0xFFFFFFFF)
    lying = resealed(data)
    tracemalloc.start()
    try:
        assert reason(lying) == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_rejected(noise: bytes) -> None:
    with pytest.raises(RecordError):
        decode_record(noise)
    header = bytearray(encode_record(SECOND)[:HEADER_BYTES])
    with pytest.raises(RecordError):
        decode_record(bytes(header) + noise)


class TestStoreKey:
    def test_a_record_without_mac_is_refused_where_a_key_is_configured(self) -> None:
        assert reason(encode_record(FIRST), STORE_KEY) == "checksum"
        with pytest.raises(RecordError, match="carries no MAC, but a store key is configured"):
            decode_record(encode_record(FIRST), STORE_KEY)

    def test_a_mac_cannot_be_checked_without_the_key(self) -> None:
        assert reason(encode_record(FIRST, STORE_KEY)) == "checksum"
        with pytest.raises(RecordError, match="carries a MAC, but no store key is configured"):
            decode_record(encode_record(FIRST, STORE_KEY))

    def test_another_key_does_not_fit(self) -> None:
        assert reason(encode_record(FIRST, STORE_KEY), STORE_KEY[::-1]) == "checksum"

    def test_a_checksum_under_the_mac_flag_is_refused(self) -> None:
        data = bytearray(encode_record(FIRST))
        struct.pack_into("<H", data, 10, 1)
        assert reason(resealed(data), STORE_KEY) == "checksum"

    def test_only_the_flag_and_the_trailer_differ(self) -> None:
        plain, keyed = encode_record(FIRST), encode_record(FIRST, STORE_KEY)
        differing = [at for at, (a, b) in enumerate(zip(plain, keyed, strict=True)) if a != b]
        assert differing[0] == 10
        assert min(differing[1:]) >= len(plain) - TRAILER_BYTES

    @pytest.mark.parametrize("key", [b"", b"short", bytes(15), bytes(65)])
    def test_unfit_keys_are_named(self, key: bytes) -> None:
        with pytest.raises(InputError, match=f"16 to 64 bytes, got {len(key)}"):
            encode_record(FIRST, key)
        with pytest.raises(InputError, match="16 to 64 bytes"):
            decode_record(encode_record(FIRST, STORE_KEY), key)


@pytest.mark.parametrize(
    ("field", "other", "why"),
    [
        ("namespace", bytes(32), "namespace"),
        ("key", bytes(16), "key"),
        ("parent_key", bytes(16), "parent"),
        ("path_digest", bytes(32), "path"),
        ("depth", 3, "depth"),
        ("tokens", bytes(16), "tokens"),
        ("shape", dataclasses.replace(SHAPE, dtype="bfloat16"), "dtype"),
        ("shape", dataclasses.replace(SHAPE, kv_format="int8"), "dtype"),
        ("shape", dataclasses.replace(SHAPE, kv_heads=2), "shape"),
    ],
)
def test_expect_names_the_field_that_differs(field: str, other: object, why: str) -> None:
    expect_record(SECOND, **WANTED)
    with pytest.raises(RecordError) as caught:
        expect_record(SECOND, **{**WANTED, field: other})
    assert caught.value.reason == why


def test_expect_takes_the_namespace_digest_as_parent_of_a_first_chunk() -> None:
    wanted = {**WANTED, "key": KEYS[0], "path_digest": PATHS[0], "depth": 1, "tokens": TOKENS[:16]}
    expect_record(FIRST, **{**wanted, "parent_key": NAMESPACE.digest})
    expect_record(FIRST, **{**wanted, "parent_key": NAMESPACE.digest[:16]})


def test_a_colliding_key_is_caught_by_the_tokens() -> None:
    impostor = decode_record(encode_record(dataclasses.replace(SECOND, tokens=bytes(16))))
    with pytest.raises(RecordError) as caught:
        expect_record(impostor, **WANTED)
    assert caught.value.reason == "tokens"
    assert "0, 0" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"namespace": b"x"}, "namespace"),
        ({"key": b""}, "key"),
        ({"parent_key": bytes(32)}, "parent"),
        ({"path_digest": bytes(16)}, "path"),
        ({"depth": -1}, "depth"),
        ({"depth": 1 << 32}, "depth"),
        ({"depth": 0}, "codec"),
        ({"depth": 1}, "parent"),
        ({"codec": 9}, "codec"),
        ({"shape": None}, "shape"),
        ({"shape": ChunkShape(1 << 32, 1, 4, 1, 1, "float16")}, "shape"),
        ({"tokens": b"12345"}, "tokens"),
        ({"tokens": b"\xff" * 16}, "tokens"),
        ({"payload": b"short"}, "length"),
        ({"created_at_seconds": -1}, "length"),
        ({"created_at_seconds": 1 << 64}, "length"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_written(change: dict[str, object], why: str) -> None:
    with pytest.raises(RecordError) as caught:
        encode_record(dataclasses.replace(SECOND, **change))
    assert caught.value.reason == why


def test_every_dtype_has_an_id() -> None:
    assert DTYPE_IDS.keys() == DTYPE_BYTES.keys()
    assert len(set(DTYPE_IDS.values())) == len(DTYPE_IDS)


def test_every_format_has_an_id_of_a_byte_and_raw_adds_nothing() -> None:
    assert FORMAT_IDS.keys() == set(KV_FORMATS)
    assert len(set(FORMAT_IDS.values())) == len(FORMAT_IDS)
    assert max((*FORMAT_IDS.values(), *DTYPE_IDS.values())) < 256
    assert FORMAT_IDS["raw"] == 0


def test_int8_and_fp8_differ_only_in_the_dtype_field_and_are_not_taken_for_each_other() -> None:
    """Their payloads are of one size: nothing but the header tells them apart."""
    shapes = [dataclasses.replace(SHAPE, kv_format=kv_format) for kv_format in ("int8", "fp8")]
    payload = bytes(shapes[0].chunk_bytes)
    int8, fp8 = (encode_record(dataclasses.replace(SECOND, shape=shape, payload=payload)) for shape in shapes)
    assert int8[14:16] == bytes([3, 1])
    assert fp8[14:16] == bytes([3, 2])
    assert (int8[:14], int8[16:-TRAILER_BYTES]) == (fp8[:14], fp8[16:-TRAILER_BYTES])
    expect_record(decode_record(int8), **{**WANTED, "shape": shapes[0]})
    with pytest.raises(RecordError) as caught:
        expect_record(decode_record(int8), **{**WANTED, "shape": shapes[1]})
    assert caught.value.reason == "dtype"


class TestNamespaceRecord:
    def test_describes_the_namespace(self) -> None:
        record = decode_record(
            encode_namespace_record(NAMESPACE, created_at_seconds=5, store_key=STORE_KEY), STORE_KEY
        )
        assert record.depth == 0
        assert record.shape is None
        assert record.key == record.parent_key == NAMESPACE.digest[:16]
        assert record.namespace == record.path_digest == NAMESPACE.digest
        assert decode_namespace(record) == NAMESPACE.public_fields()

    def test_does_not_show_the_salt(self) -> None:
        salted = Namespace(scope="tenant:acme", salt="pepper and salt")
        data = encode_namespace_record(salted, created_at_seconds=5)
        assert b"pepper" not in data
        shown = decode_namespace(decode_record(data))
        assert shown["salt"] == "sha256:" + hashlib.sha256(b"pepper and salt").hexdigest()[:16]

    def test_a_chunk_is_no_namespace(self) -> None:
        with pytest.raises(RecordError, match="is a chunk") as caught:
            decode_namespace(SECOND)
        assert caught.value.reason == "depth"

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b"[" * 100_000,
            json.dumps({**NAMESPACE.public_fields(), "chunk_tokens": "64"}).encode(),
            json.dumps({**NAMESPACE.public_fields(), "more": 1}).encode(),
            json.dumps({**NAMESPACE.public_fields(), "scope": "tenant:other"}).encode(),
            json.dumps({**NAMESPACE.public_fields(), "scope": "\ud800"}).encode(),
        ],
    )
    def test_other_documents_are_rejected(self, payload: bytes) -> None:
        record = decode_record(encode_namespace_record(NAMESPACE, created_at_seconds=5))
        lying = decode_record(encode_record(dataclasses.replace(record, payload=payload)))
        with pytest.raises(RecordError) as caught:
            decode_namespace(lying)
        assert caught.value.reason == "namespace"

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"key": bytes(16)}, "key"),
            ({"parent_key": bytes(16)}, "parent"),
            ({"path_digest": bytes(32)}, "path"),
            ({"shape": SHAPE}, "shape"),
            ({"tokens": bytes(4)}, "tokens"),
            ({"codec": 1}, "codec"),
        ],
    )
    def test_it_carries_nothing_of_a_chunk(self, change: dict[str, object], why: str) -> None:
        record = decode_record(encode_namespace_record(NAMESPACE, created_at_seconds=5))
        with pytest.raises(RecordError) as caught:
            encode_record(dataclasses.replace(record, **change))
        assert caught.value.reason == why
