"""The pool's chunks as bytes, copies and zeros, in every format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvtrie.chunk_kernels import ChunkPool
from kvtrie.chunk_kernels.quantise import quantise
from kvtrie.prefix_tree import ChunkShape, InputError

CHUNK = 6


def noisy(kv_format: str, dtype: str = "float16") -> ChunkPool:
    """Three layers of noise; dims are odd, so that scales are not aligned in the bytes."""
    torch.manual_seed(0)
    pool = ChunkPool(ChunkShape(3, 2, CHUNK, 7, 5, dtype, kv_format), 5)
    for layer in range(3):
        key, value = torch.randn(5 * CHUNK, 2, 7), torch.randn(5 * CHUNK, 2, 5)
        pool.write(layer, torch.arange(5 * CHUNK), key.to(pool.dtype), value.to(pool.dtype))
    return pool


def parts(pool: ChunkPool) -> list[torch.Tensor]:
    """Copies of all that is stored, as integers, so that NaN and signs of zero are compared too."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    found = [pool.k, pool.v, pool.k_scale, pool.v_scale]
    return [part.view(integers[part.element_size()]).clone() for part in found if part is not None]


@pytest.mark.parametrize("kv_format", ["raw", "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_chunk_goes_out_and_comes_back_bit_for_bit(kv_format: str, dtype: str) -> None:
    pool = noisy(kv_format, dtype)
    keys, values = pool.read_chunk(3)
    assert keys.shape == (3, pool.shape.key_bytes)
    assert values.shape == (3, pool.shape.value_bytes)
    assert keys.dtype == values.dtype == np.uint8
    before = parts(pool)
    # As a record's payload is decoded: read-only views of one buffer.
    payload = np.concatenate([keys, values], axis=1)
    payload.flags.writeable = False
    pool.write_chunk(1, payload[:, : keys.shape[1]], payload[:, keys.shape[1] :])
    for found, old in zip(parts(pool), before):
        old[:, :, 1] = old[:, :, 3]
        assert torch.equal(found, old)


@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
def test_the_bytes_are_elements_and_then_scales(kv_format: str) -> None:
    pool = noisy(kv_format)
    assert pool.k_scale is not None
    keys, _ = pool.read_chunk(2)
    elements = pool.k[1, :, 2].contiguous().view(torch.uint8).numpy().tobytes()
    scales = pool.k_scale[1, :, 2].contiguous().numpy().tobytes()
    assert keys[1].tobytes() == elements + scales


def test_a_raw_pool_has_no_scales() -> None:
    pool = noisy("raw")
    assert pool.k_scale is None
    assert pool.v_scale is None
    assert pool.k.dtype == pool.dtype == torch.float16


@pytest.mark.parametrize(("kv_format", "dtype"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_a_quantised_pool_takes_as_many_bytes_as_its_shape_says(kv_format: str, dtype: torch.dtype) -> None:
    pool = noisy(kv_format, "bfloat16")
    assert pool.k.dtype == pool.v.dtype == dtype
    assert pool.dtype == torch.bfloat16, "what the model hands over and gets back"
    assert sum(part.nbytes for part in parts(pool)) == pool.slots * pool.shape.chunk_bytes


@pytest.mark.parametrize("kv_format", ["raw", "int8", "fp8"])
def test_copied_columns_and_cleared_slots(kv_format: str) -> None:
    pool = noisy(kv_format)
    expected = parts(pool)
    pool.copy_columns(0, 4, 2)
    pool.clear([1, 2])
    for found, old in zip(parts(pool), expected):
        old[:, :, 4, :2] = old[:, :, 0, :2]
        old[:, :, [1, 2]] = 0
        assert torch.equal(found, old)


@pytest.mark.parametrize("kv_format", ["int8", "fp8"])
def test_a_slot_that_held_nan_is_a_number_again_once_cleared(kv_format: str) -> None:
    pool = noisy(kv_format)
    poison = torch.full((1, 2, 7), torch.nan).half()
    pool.write(0, torch.tensor([2 * CHUNK]), poison, torch.ones(1, 2, 5).half())
    assert pool.keys(0).read(lambda stored: stored[:, 2, 0]).isnan().all()
    pool.clear([2])
    assert pool.keys(0).read(lambda stored: stored[:, 2]).eq(0).all()


def test_reading_gives_what_the_stored_bytes_stand_for() -> None:
    pool = noisy("int8", "float32")
    key = torch.randn(1, 2, 7)
    pool.write(2, torch.tensor([CHUNK + 3]), key, torch.randn(1, 2, 5))
    elements, scale = quantise(key[0], "int8")
    found = pool.keys(2).read(lambda stored: stored[:, 1, 3])
    assert torch.equal(found, elements.float() * scale[:, None])
    assert pool.keys(2, torch.float64).read(lambda stored: stored[:, 1, 3]).dtype == torch.float64


def test_a_device_without_the_format_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(InputError, match=r"kv_format=.fp8. needs a GPU"):
        ChunkPool(ChunkShape(1, 1, 4, 8, 8, "float16", "fp8"), 2, "cuda")
