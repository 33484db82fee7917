"""Attention over int8 and fp8 pools, on every path, against an oracle over what the same stored bytes stand for."""

from __future__ import annotations

import random

import pytest
import torch

from kvtrie.chunk_kernels import ChunkPool, StepSequence, attend, attend_reference, prepare_step
from kvtrie.chunk_kernels.launch_plan import launch_plan
from kvtrie.chunk_kernels.tilings import Tiling, Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from tests.chunk_kernels.forests import CHUNK, random_forest
from tests.chunk_kernels.quantised_pools import as_raw, quantised_pool

SCALE = 0.17
FORMATS = ["int8", "fp8"]
TILING = Tiling(block_m=16, block_n=32)
SPLITS = CostModel(processors=1 << 20, launch_bytes=0, partial_share=1e9, least_piece_tokens=32)
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}


def random_query(pool: ChunkPool, sequences: list[StepSequence], group: int) -> torch.Tensor:
    rows = sum(sequence.rows for sequence in sequences)
    shape = pool.shape
    return torch.randn(rows, shape.kv_heads * group, shape.key_dim, device=pool.device).to(pool.dtype)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "scattered"])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 7), (4, 1)])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(32, 32), (24, 40)])
def test_the_torch_path_and_the_reference(
    kv_format: str, adjacent: bool, kv_heads: int, group: int, key_dim: int, value_dim: int
) -> None:
    torch.manual_seed(0)
    rng = random.Random(f"{kv_heads} {group} {key_dim} {adjacent}")
    pool = quantised_pool(kv_format, kv_heads, key_dim, value_dim)
    raw = as_raw(pool)
    for _ in range(5):
        sequences = random_forest(rng, pool.slots, adjacent=adjacent)
        query = random_query(pool, sequences, group)
        for layer in range(2):
            expected, expected_lse = attend_reference(query, raw, layer, sequences, SCALE)
            for out, lse in (
                attend(query, pool, layer, prepare_step(sequences, pool), SCALE),
                attend_reference(query, pool, layer, sequences, SCALE),
            ):
                torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
                torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_models_are_within_their_rounding(kv_format: str, dtype: str) -> None:
    torch.manual_seed(1)
    pool = quantised_pool(kv_format, 2, 32, 32, dtype)
    sequences = random_forest(random.Random(5), pool.slots, adjacent=True)
    query = random_query(pool, sequences, 2)
    out, _ = attend(query, pool, 0, prepare_step(sequences, pool), 32**-0.5)
    expected, _ = attend_reference(query, as_raw(pool), 0, sequences, 32**-0.5)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_regular_slabs_are_read_in_place(kv_format: str) -> None:
    """Private runs at a constant distance: elements and scales are strided alike."""
    torch.manual_seed(3)
    pool = quantised_pool(kv_format, 2, 32, 24)
    sequences = [StepSequence([0, first, first + 1], 3 * CHUNK - 3, 1) for first in (5, 9, 13)]
    query = random_query(pool, sequences, 2)
    out, lse = attend(query, pool, 1, prepare_step(sequences, pool), SCALE)
    expected, expected_lse = attend_reference(query, as_raw(pool), 1, sequences, SCALE)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("poisoned_outputs")
class TestKernel:
    """The Triton kernel: interpreted without a GPU, compiled with one."""

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    def compare(
        self, pool: ChunkPool, group: int, seed: int, *, adjacent: bool = True, atol: float | None = None
    ) -> None:
        from kvtrie.chunk_kernels.attend_triton import attend_triton

        sequences = random_forest(random.Random(seed), pool.slots, adjacent=adjacent, most_rows=9)
        query = random_query(pool, sequences, group)
        launch = launch_plan(prepare_step(sequences, pool), group, Tilings(TILING, TILING), SPLITS)
        out, lse = attend_triton(query, pool, 1, launch, SCALE)
        expected, expected_lse = attend_reference(query, as_raw(pool), 1, sequences, SCALE)
        tolerance = TOLERANCES[pool.shape.dtype]
        if atol is None:
            atol = tolerance * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=atol)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=max(1e-5, tolerance / 10))

    @pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "scattered"])
    @pytest.mark.parametrize(
        ("kv_heads", "group", "key_dim", "value_dim", "dtype"),
        [
            (2, 1, 64, 64, "float32"),
            (1, 3, 80, 80, "float32"),
            (2, 4, 32, 32, "float16"),
            (1, 7, 96, 64, "float16"),
            (1, 8, 128, 128, "float16"),
        ],
    )
    @pytest.mark.parametrize("kv_format", FORMATS)
    def test_any_forest_matches_the_oracle(
        self,
        kv_format: str,
        kv_heads: int,
        group: int,
        key_dim: int,
        value_dim: int,
        dtype: str,
        adjacent: bool,
    ) -> None:
        torch.manual_seed(kv_heads)
        pool = quantised_pool(kv_format, kv_heads, key_dim, value_dim, dtype, device=self.DEVICE)
        self.compare(pool, group, 1 + adjacent, adjacent=adjacent)

    @pytest.mark.parametrize("value_spread", [1e-4, 1e3])
    def test_small_and_large_values_keep_their_precision_in_fp16(self, value_spread: float) -> None:
        """A weight times a scale is no fp16 number: folded in as they are, small ones would lose their bits."""
        torch.manual_seed(7)
        pool = quantised_pool("int8", 2, 32, 32, "float16", device=self.DEVICE, value_spread=value_spread)
        for seed in (3, 4):
            self.compare(pool, 2, seed, atol=2e-3 * value_spread)

    def test_vectors_of_zeros(self) -> None:
        """Scales of 0 throughout: the output is 0, and not 0 / 0."""
        torch.manual_seed(8)
        pool = quantised_pool("int8", 2, 32, 32, device=self.DEVICE, value_spread=0.0)
        assert pool.v_scale is not None
        assert not pool.v_scale.any()
        self.compare(pool, 2, 5)

    def test_a_scale_that_is_not_finite_reaches_the_output(self) -> None:
        from kvtrie.chunk_kernels.attend_triton import attend_triton

        torch.manual_seed(9)
        for part in ("k_scale", "v_scale"):
            pool = quantised_pool("int8", 1, 32, 32, device=self.DEVICE)
            getattr(pool, part)[1, 0, 2, 3] = torch.inf
            sequences = [StepSequence([0, 1, 2], 3 * CHUNK - 1, 1), StepSequence([0, 1, 4], 3 * CHUNK - 1, 1)]
            step = prepare_step(sequences, pool)
            query = random_query(pool, sequences, 2)
            out, _ = attend_triton(
                query, pool, 1, launch_plan(step, 2, Tilings(TILING, TILING), SPLITS), SCALE
            )
            assert not out[0].isfinite().all()
            assert out[1].isfinite().all()
