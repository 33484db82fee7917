"""The raw codec: layer by layer, keys before values, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from kvtrie.prefix_tree.errors import InputError, RecordError
from kvtrie.prefix_tree.shape import DTYPE_BYTES, KV_FORMATS, ChunkShape
from kvtrie.store import Codec, RawCodec


def arrays(shape: ChunkShape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (shape.layers, shape.key_bytes), np.uint8),
        rng.integers(0, 256, (shape.layers, shape.value_bytes), np.uint8),
    )


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 2, 5, 7, 3), (2, 4, 16, 8, 8)])
def test_round_trip(dtype: str, kv_format: str, sizes: tuple[int, ...]) -> None:
    shape = ChunkShape(*sizes, dtype=dtype, kv_format=kv_format)
    codec: Codec = RawCodec(shape)
    keys, values = arrays(shape)
    payload = codec.encode(keys, values)
    assert len(payload) == codec.payload_bytes == shape.chunk_bytes
    decoded = codec.decode(memoryview(payload))
    np.testing.assert_array_equal(decoded.keys, keys)
    np.testing.assert_array_equal(decoded.values, values)


def test_the_layout_is_the_documented_one() -> None:
    shape = ChunkShape(layers=2, kv_heads=2, chunk_tokens=3, key_dim=4, value_dim=5, dtype="float32")
    keys = np.arange(2 * 2 * 3 * 4, dtype="<f4").reshape(2, 2, 3, 4)
    values = -np.arange(2 * 2 * 3 * 5, dtype="<f4").reshape(2, 2, 3, 5)
    payload = RawCodec(shape).encode(keys.reshape(2, -1).view(np.uint8), values.reshape(2, -1).view(np.uint8))
    expected = b"".join(keys[layer].tobytes() + values[layer].tobytes() for layer in range(2))
    assert payload == expected
    decoded = RawCodec(shape).decode(payload)
    np.testing.assert_array_equal(decoded.keys.view("<f4").reshape(keys.shape), keys)
    np.testing.assert_array_equal(decoded.values.view("<f4").reshape(values.shape), values)


def test_the_quantised_layout_is_the_documented_one() -> None:
    """Read by hand: elements, their scales, and only then the values."""
    shape = ChunkShape(
        2, kv_heads=2, chunk_tokens=3, key_dim=4, value_dim=5, dtype="float16", kv_format="int8"
    )
    keys = np.arange(2 * 2 * 3 * 4, dtype="i1").reshape(2, 2, 3, 4)
    key_scales = np.arange(2 * 2 * 3, dtype="<f4").reshape(2, 2, 3)
    values = -np.arange(2 * 2 * 3 * 5, dtype="i1").reshape(2, 2, 3, 5)
    value_scales = -key_scales
    rows = [
        np.concatenate([part.reshape(2, -1).view(np.uint8) for part in parts], axis=1)
        for parts in ((keys, key_scales), (values, value_scales))
    ]
    payload = RawCodec(shape).encode(*rows)
    assert payload == b"".join(
        part[layer].tobytes() for layer in range(2) for part in (keys, key_scales, values, value_scales)
    )
    assert len(payload) == 2 * (2 * 3 * (4 + 4) + 2 * 3 * (5 + 4))


def test_decoding_copies_nothing_and_cannot_change_the_record() -> None:
    shape = ChunkShape(2, 1, 4, 2, 2, "bfloat16")
    payload = RawCodec(shape).encode(*arrays(shape))
    decoded = RawCodec(shape).decode(payload)
    whole = np.frombuffer(payload, np.uint8)
    assert np.shares_memory(decoded.keys, whole)
    assert np.shares_memory(decoded.values, whole)
    assert not decoded.keys.flags.writeable


def test_strided_rows_are_encoded_as_their_elements() -> None:
    shape = ChunkShape(2, 1, 4, 2, 2, "float16")
    keys, values = arrays(shape)
    wide = np.zeros((shape.layers, 2 * shape.key_bytes), np.uint8)
    wide[:, ::2] = keys
    assert RawCodec(shape).encode(wide[:, ::2], values) == RawCodec(shape).encode(keys, values)


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_payload_of_another_length_is_rejected(off_by: int) -> None:
    codec = RawCodec(ChunkShape(2, 1, 4, 2, 2, "float16"))
    with pytest.raises(RecordError) as caught:
        codec.decode(bytes(codec.payload_bytes + off_by))
    assert caught.value.reason == "length"


def test_arrays_of_another_shape_or_type_are_named() -> None:
    shape = ChunkShape(2, 1, 4, 2, 1, "float16")
    keys, values = arrays(shape)
    with pytest.raises(InputError, match=r"keys must be uint8 \(2, 16\), got uint8 \(1, 16\)"):
        RawCodec(shape).encode(keys[:1], values)
    with pytest.raises(InputError, match=r"values must be uint8 \(2, 8\), got int8"):
        RawCodec(shape).encode(keys, values.view(np.int8))
