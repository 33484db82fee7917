"""New keys and values in their places: the kernel writes the very bytes that torch writes."""

from __future__ import annotations

import pytest
import torch

from kvtrie.chunk_kernels import ChunkPool, StepSequence, prepare_step, write_kv
from kvtrie.chunk_kernels.write import write_triton
from kvtrie.prefix_tree import ChunkShape, InputError
from tests.chunk_kernels.quantised_pools import needs_fp8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK = 8
ROWS = 40


def pool_of(kv_format: str, dtype: str = "float32", device: str = DEVICE) -> ChunkPool:
    """A pool of two layers whose every byte is 7."""
    needs_fp8(kv_format, device)
    pool = ChunkPool(ChunkShape(2, 2, CHUNK, 24, 40, dtype, kv_format), 12, device)
    for stored in stored_in(pool):
        stored.view(torch.uint8).fill_(7)
    return pool


def stored_in(pool: ChunkPool) -> list[torch.Tensor]:
    return [part for part in (pool.k, pool.v, pool.k_scale, pool.v_scale) if part is not None]


def as_bytes(pool: ChunkPool) -> list[torch.Tensor]:
    return [part.view(torch.uint8) for part in stored_in(pool)]


def new_vectors(dim: int, dtype: torch.dtype, *, exact: bool) -> torch.Tensor:
    """`[ROWS, 2, dim]` as a model hands it over: heads first, transposed, not contiguous.

    Vectors are of very different sizes, some are zero or not finite. `exact` ones need no rounding in fp8.
    """
    if exact:
        patterns = torch.randint(0, 127, (2, ROWS, dim), dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        patterns[..., 0] = 448.0
        vectors = patterns * torch.exp2(torch.randint(-9, 6, (2, ROWS, 1)).float())
    else:
        vectors = torch.randn(2, ROWS, dim) * torch.exp(3 * torch.randn(2, ROWS, 1))
    vectors[:, 3] = 0
    vectors[0, 4, 1] = torch.nan
    vectors[1, 5, 2] = -torch.inf
    vectors[0, 6] = 1e-39
    # Ties: 127 halves of a step.
    vectors[1, 7] = torch.arange(dim) + 0.5
    vectors[1, 7, 0] = 127.0
    return vectors.to(dtype).to(DEVICE).transpose(0, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kv_format", ["raw", "int8", "fp8"])
def test_the_kernel_writes_what_torch_writes(kv_format: str, dtype: str) -> None:
    """fp8 in Triton's interpreter: only what needs no rounding, since that loses carries when it rounds to fp8."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    exact = kv_format == "fp8" and DEVICE == "cpu"
    pool, expected = pool_of(kv_format, dtype), pool_of(kv_format, dtype)
    key = new_vectors(24, pool.dtype, exact=exact)
    value = new_vectors(40, pool.dtype, exact=exact)
    if exact:
        # Ties need rounding.
        key[7], value[7] = key[8], value[8]
    places = torch.randperm(12 * CHUNK)[:ROWS].to(DEVICE)
    # Idle lanes of a captured graph.
    places[[0, 9, 17]] = -1
    write_triton(pool, 1, places, key, value)
    expected.write(1, places, key, value)
    for found, wanted in zip(as_bytes(pool), as_bytes(expected)):
        assert torch.equal(found, wanted)
    if pool.k_scale is not None:
        assert int((~pool.k_scale.isfinite()).sum()) == 2, "NaN and infinity, one vector each"


@pytest.mark.parametrize("kv_format", ["raw", "int8", "fp8"])
def test_a_step_writes_to_its_places_and_nowhere_else(kv_format: str) -> None:
    torch.manual_seed(1)
    pool, before = pool_of(kv_format), pool_of(kv_format)
    sequences = [StepSequence([3, 9], CHUNK - 2, 5), StepSequence([4], 0, 1)]
    step = prepare_step(sequences, pool)
    key = torch.randn(2, 6, 24, device=DEVICE).transpose(0, 1)
    value = torch.randn(2, 6, 40, device=DEVICE).transpose(0, 1)
    write_kv(pool, 1, step.write_at, key, value)
    changed = torch.zeros(2, 12, CHUNK, dtype=torch.bool, device=DEVICE)
    for slot, column in ((3, 6), (3, 7), (9, 0), (9, 1), (9, 2), (4, 0)):
        changed[1, slot, column] = True
    for found, old in zip(stored_in(pool), stored_in(before)):
        differs = (found.float() != old.float()).transpose(1, 2).transpose(2, 3).flatten(3).any(-1)
        assert torch.equal(differs, changed)
    written = pool.keys(1).read(lambda stored: stored.flatten(1, 2))[:, step.write_at]
    coarse = 1e-6 if kv_format == "raw" else 0.07
    torch.testing.assert_close(written.transpose(0, 1), key, rtol=coarse, atol=coarse)


@pytest.mark.parametrize("write", [write_kv, write_triton], ids=["write_kv", "write_triton"])
def test_what_does_not_fit_is_refused_before_anything_is_written(write) -> None:
    pytest.importorskip("triton")
    pool, before = pool_of("int8"), pool_of("int8")
    places = torch.arange(3, device=DEVICE)
    key, value = torch.ones(3, 2, 24, device=DEVICE), torch.ones(3, 2, 40, device=DEVICE)
    for wrong_key, wrong_value, message in (
        (key[:2], value, "do not fit a pool of 2 KV heads"),
        (key, value[..., :39], "do not fit"),
        (key.half(), value, "keys are torch.float16"),
        (key, value.half(), "values are torch.float16"),
        (key.to("meta"), value, "on meta"),
    ):
        with pytest.raises(InputError, match=message):
            write(pool, 0, places, wrong_key, wrong_value)
    for found, old in zip(as_bytes(pool), as_bytes(before)):
        assert torch.equal(found, old)
