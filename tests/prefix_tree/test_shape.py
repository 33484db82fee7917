"""The shape of a chunk, in bytes."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree import ChunkShape, InputError

SIZES = {"layers": 3, "kv_heads": 5, "chunk_tokens": 7, "key_dim": 11, "value_dim": 13}


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_bytes_of_keys_values_and_the_whole(dtype: str, width: int) -> None:
    shape = ChunkShape(**SIZES, dtype=dtype)
    assert shape.key_bytes == 5 * 7 * 11 * width
    assert shape.value_bytes == 5 * 7 * 13 * width
    assert shape.chunk_bytes == 3 * (5 * 7 * 11 + 5 * 7 * 13) * width


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1])
def test_every_size_is_at_least_one(name: str, size: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got {size}"):
        ChunkShape(**{**SIZES, name: size}, dtype="float32")


@pytest.mark.parametrize("dtype", ["float64", "int8", "torch.float32", ""])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="is not one of"):
        ChunkShape(**SIZES, dtype=dtype)
