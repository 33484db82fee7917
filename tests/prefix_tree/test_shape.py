"""The shape of a chunk, in bytes."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree import ChunkShape, InputError, Namespace
from kvtrie.prefix_tree.shape import KV_FORMATS

SIZES = {"layers": 3, "kv_heads": 5, "chunk_tokens": 7, "key_dim": 11, "value_dim": 13}


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_bytes_of_keys_values_and_the_whole(dtype: str, width: int) -> None:
    shape = ChunkShape(**SIZES, dtype=dtype)
    assert shape.key_bytes == 5 * 7 * 11 * width
    assert shape.value_bytes == 5 * 7 * 13 * width
    assert shape.chunk_bytes == 3 * (5 * 7 * 11 + 5 * 7 * 13) * width


@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantised_bytes_are_one_per_element_and_four_per_vector(dtype: str, kv_format: str) -> None:
    shape = ChunkShape(**SIZES, dtype=dtype, kv_format=kv_format)
    assert shape.is_quantised
    assert shape.key_bytes == 5 * 7 * (11 + 4)
    assert shape.value_bytes == 5 * 7 * (13 + 4)
    assert shape.chunk_bytes == 3 * 5 * 7 * (11 + 13 + 8)


def test_every_format_has_a_fidelity_of_its_own() -> None:
    shapes = [ChunkShape(**SIZES, dtype="float16", kv_format=kv_format) for kv_format in KV_FORMATS]
    assert shapes[0] == ChunkShape(**SIZES, dtype="float16"), "raw is the default"
    assert shapes[0].fidelity == Namespace("tenant:acme").fidelity == "exact"
    assert len({shape.fidelity for shape in shapes}) == len(KV_FORMATS) == 3


@pytest.mark.parametrize("kv_format", ["int4", "INT8", "", None, ["int8"]])
def test_other_formats_are_refused(kv_format: object) -> None:
    with pytest.raises(InputError, match=r"is not one of \['raw', 'int8', 'fp8'\]"):
        ChunkShape(**SIZES, dtype="float32", kv_format=kv_format)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1])
def test_every_size_is_at_least_one(name: str, size: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got {size}"):
        ChunkShape(**{**SIZES, name: size}, dtype="float32")


@pytest.mark.parametrize("dtype", ["float64", "int8", "torch.float32", ""])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="is not one of"):
        ChunkShape(**SIZES, dtype=dtype)
