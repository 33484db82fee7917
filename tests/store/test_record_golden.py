"""The golden file: bytes that kvtrie wrote once must be read, and written, for ever.

python tests/store/test_record_golden.py > record_v1.bin          writes what the code writes now
python tests/store/test_record_golden.py int8 > record_v1_int8.bin
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from kvtrie.prefix_tree.keys import as_tokens, chunk_keys, path_digests
from kvtrie.prefix_tree.shape import ChunkShape
from kvtrie.store import RawCodec, Record, decode_record, encode_record

GOLDEN = Path(__file__).with_name("golden") / "record_v1.bin"
# A format that changes needs a new version and a golden file beside this one: never a new digest here.
GOLDEN_SHA256 = "6fb7d12baff002250627f48d599335356b1419ebcb1745b9b9a2d0bb969beef8"
KEYED_TRAILER = "3910e12d2b96d8bcae3a7ef82246e00b"
STORE_KEY = b"golden store key"


def golden_record() -> Record:
    """The second chunk of a path of six tokens; fields are plain so that a hex dump can be read."""
    # Not a Namespace's digest: what namespaces consist of may grow without a new record version.
    namespace = bytes(range(32))
    tokens = as_tokens([1, 2, 3, 65536, 0, 2_147_483_647]).tobytes()
    shape = ChunkShape(layers=2, kv_heads=1, chunk_tokens=3, key_dim=2, value_dim=1, dtype="bfloat16")
    keys = chunk_keys(namespace, tokens, 3)
    return Record(
        namespace=namespace,
        key=keys[1],
        parent_key=keys[0],
        path_digest=path_digests(namespace, tokens, 3)[1],
        depth=2,
        codec=RawCodec.id,
        shape=shape,
        tokens=tokens[12:],
        payload=bytes(range(0x80, 0x80 + shape.chunk_bytes)),
        created_at_seconds=1_700_000_000,
    )


GOLDEN_INT8 = GOLDEN.with_name("record_v1_int8.bin")
GOLDEN_INT8_SHA256 = "d2008c3e2ae63086b9280ca7699d0f427eadf03beeeb0be3828c34d9fb6bd323"


def golden_int8_record() -> Record:
    """The same chunk from an int8 pool."""
    record = golden_record()
    assert record.shape is not None
    shape = replace(record.shape, kv_format="int8")
    scales = np.array([0.5, 0.0, 2.0**-20], "<f4").tobytes()
    # Two layers: six key elements and three scales, three value elements and three scales.
    layers = [bytes(range(first, first + 6)) + scales + b"\x81\x00\x7f" + scales for first in (0, 0xF0)]
    return replace(record, shape=shape, payload=b"".join(layers))


def test_the_golden_files_of_quantised_chunks() -> None:
    data = GOLDEN_INT8.read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN_INT8_SHA256
    assert encode_record(golden_int8_record()) == data
    assert decode_record(data) == golden_int8_record()
    # Offsets of docs/records.md, read without the code that writes them.
    assert data[14:16] == bytes([2, 1])  # dtype: bfloat16, stored as int8
    assert int.from_bytes(data[144:152], "little") == 2 * (6 + 12 + 3 + 12)  # payload bytes
    payload = data[172:-16]
    assert payload[:6] == bytes(range(6))
    assert np.frombuffer(payload[6:18], "<f4").tolist() == [0.5, 0.0, 2.0**-20]
    assert np.frombuffer(payload[18:21], "i1").tolist() == [-127, 0, 127]
    assert payload[33:39] == bytes(range(0xF0, 0xF6))


def test_the_golden_file_is_the_one_that_was_published() -> None:
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256


def test_the_golden_file_is_still_written() -> None:
    assert encode_record(golden_record()) == GOLDEN.read_bytes()


def test_the_golden_file_is_still_read() -> None:
    assert decode_record(GOLDEN.read_bytes()) == golden_record()


def test_the_keyed_trailer_is_still_the_same() -> None:
    assert encode_record(golden_record(), STORE_KEY)[-16:].hex() == KEYED_TRAILER


def test_the_golden_file_is_laid_out_as_documented() -> None:
    """Offsets of docs/records.md, read without the code that writes them."""
    data = GOLDEN.read_bytes()

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    record = golden_record()
    assert data[0:8] == b"\x89KVTRIE\n"
    assert number(8, 10) == 1  # version
    assert number(10, 12) == 0  # flags
    assert number(12, 14) == 1  # codec: raw
    assert number(14, 16) == 2  # dtype: bfloat16
    assert data[16:48] == record.namespace
    assert data[48:64] == record.key
    assert data[64:80] == record.parent_key
    assert data[80:112] == record.path_digest
    assert number(112, 116) == 2  # depth
    assert number(116, 120) == 3  # token count
    assert [number(at, at + 4) for at in range(120, 140, 4)] == [2, 1, 3, 2, 1]
    assert number(140, 144) == 0  # reserved
    assert number(144, 152) == 36  # payload bytes
    assert number(152, 160) == 1_700_000_000
    assert data[160:172].hex(" ", 4) == "00000100 00000000 ffffff7f"
    assert data[172:208] == bytes(range(0x80, 0x80 + 36))
    assert data[208:] == xxhash.xxh3_128(data[:208]).digest()


if __name__ == "__main__":
    asked = golden_int8_record() if sys.argv[1:] == ["int8"] else golden_record()
    sys.stdout.buffer.write(encode_record(asked))
