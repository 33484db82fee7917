"""The Triton kernels against an fp64 oracle: interpreted without a GPU, compiled with one."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton")

from kvtrie.chunk_kernels import PLAIN, Variant, prepare_step
from kvtrie.chunk_kernels.attend_triton import attend_triton
from kvtrie.chunk_kernels.launch_plan import launch_plan
from kvtrie.chunk_kernels.tilings import Tiling, Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from tests.chunk_kernels.forests import poison_unused, random_forest, random_pool
from tests.chunk_kernels.oracle import oracle
from tests.chunk_kernels.tolerance import most_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.17
TILING = Tiling(block_m=16, block_n=32)
SPLITS = CostModel(processors=1 << 20, launch_bytes=0, partial_share=1e9, least_piece_tokens=32)
"""Everything shared, in small pieces: private runs are cut too."""

COMPILED = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's tl.dot cannot multiply bf16")
EVERYTHING = Variant(
    window=33,
    softcap=5.0,
    slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625], device=DEVICE),
    sinks=torch.tensor([1.0, 2.0, -3.0, 0.5], device=DEVICE),
)


pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@dataclass(frozen=True)
class Case:
    kv_heads: int
    group: int
    key_dim: int
    value_dim: int
    dtype: str = "float32"
    variant: Variant = PLAIN


def compare(case: Case, seed: int, *, adjacent: bool, tiling: Tiling = TILING) -> None:
    torch.manual_seed(seed)
    pool = random_pool(case.kv_heads, case.key_dim, case.value_dim, case.dtype, device=DEVICE)
    sequences = random_forest(random.Random(seed), pool.slots, adjacent=adjacent, most_rows=9)
    poison_unused(pool, sequences)
    rows = sum(sequence.rows for sequence in sequences)
    query = torch.randn(rows, case.kv_heads * case.group, case.key_dim, device=DEVICE).to(pool.dtype)
    launch = launch_plan(prepare_step(sequences, pool), case.group, Tilings(tiling, tiling), SPLITS)
    out, lse = attend_triton(query, pool, 1, launch, SCALE, case.variant)
    expected, expected_lse = oracle(query, pool, 1, sequences, SCALE, case.variant)
    allowed = most_error(query, pool, 1, sequences, SCALE, case.variant, expected)
    assert float((out.double() - expected).abs().max()) <= allowed
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "scattered"])
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 1, 64, 64),
        Case(1, 3, 80, 80),
        Case(2, 4, 32, 32),
        Case(1, 7, 96, 96),
        Case(1, 8, 48, 32),
        Case(1, 4, 128, 128, "float16"),
        Case(1, 2, 192, 128, "float16"),
        Case(1, 3, 192, 192),
        Case(1, 1, 256, 256),
        pytest.param(Case(2, 4, 128, 128, "bfloat16"), marks=COMPILED),
        pytest.param(Case(1, 7, 80, 80, "bfloat16"), marks=COMPILED),
        pytest.param(Case(1, 2, 192, 128, "bfloat16"), marks=COMPILED),
        pytest.param(Case(1, 8, 256, 256, "bfloat16"), marks=COMPILED),
    ],
    ids=str,
)
def test_any_forest_matches_the_oracle(case: Case, adjacent: bool) -> None:
    for seed in (1, 2):
        compare(case, seed, adjacent=adjacent)


@pytest.mark.parametrize(
    "variant",
    [
        Variant(window=20),
        Variant(window=1),
        Variant(softcap=3.0),
        Variant(slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625], device=DEVICE)),
        Variant(sinks=torch.tensor([0.5, -1.0, 3.0, 0.0], device=DEVICE)),
        Variant(window=33, softcap=5.0, sinks=torch.tensor([1.0, 2.0, -3.0, 0.5], device=DEVICE)),
        EVERYTHING,
    ],
    ids=["window", "window 1", "softcap", "alibi", "sinks", "window softcap sinks", "everything"],
)
def test_variants(variant: Variant) -> None:
    for seed in (3, 4):
        compare(Case(2, 2, 32, 32, variant=variant), seed, adjacent=True)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=COMPILED)])
@pytest.mark.parametrize(
    "variant", [Variant(window=20), Variant(slopes=EVERYTHING.slopes)], ids=["window", "alibi"]
)
def test_variants_in_short_floats(dtype: str, variant: Variant) -> None:
    for seed in (3, 4):
        compare(Case(2, 2, 64, 64, dtype, variant), seed, adjacent=False)


@pytest.mark.parametrize("block_m", [16, 32, 64])
def test_tilings_agree(block_m: int) -> None:
    tiling = Tiling(block_m=block_m, block_n=16)
    compare(Case(2, 3, 32, 32), 5, adjacent=True, tiling=tiling)
