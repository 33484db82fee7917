"""The committed tables of tilings."""

from __future__ import annotations

import pytest
import torch

from kvtrie.chunk_kernels import StepSequence, prepare_step
from kvtrie.chunk_kernels.tilings import (
    TABLES,
    pool_formats,
    target_of,
    tiling_for,
    tilings_for,
    tuned_tilings,
)
from kvtrie.prefix_tree import InputError
from tests.chunk_kernels.forests import random_pool


@pytest.mark.parametrize("target", sorted(path.stem for path in TABLES.glob("*.json")))
def test_every_table_serves_every_shape(target: str) -> None:
    assert len(tuned_tilings(target)) >= 3
    for dtype in ("float16", "bfloat16", "float32"):
        for dim in (64, 80, 96, 128, 192, 256):
            for pairs in (1, 16, 17, 4096):
                tiling = tiling_for(target, dtype, dim, pairs)
                for size in (tiling.block_m, tiling.block_n):
                    assert size >= 16
                    assert size & (size - 1) == 0, "tensor cores want powers of two"


def test_more_rows_get_taller_tiles() -> None:
    pool = random_pool(1, 32, 32, "float16")
    few = tilings_for(prepare_step([StepSequence([0], 3, 1)], pool), 4)
    many = tilings_for(prepare_step([StepSequence([slot], 3, 1) for slot in range(40)], pool), 4)
    assert many.partial.block_m > few.partial.block_m
    assert many.finish == few.finish, "a sequence's own rows are as few as before"


def test_which_pool_formats_ship() -> None:
    # fp8e4nv does not compile for sm_80, and is not what gfx942 calls fp8.
    shipped = {path.stem: pool_formats(path.stem) for path in TABLES.glob("*.json")}
    assert shipped == {"sm_80": ("raw", "int8"), "sm_90": ("raw", "int8", "fp8"), "gfx942": ("raw", "int8")}


def test_what_there_is_no_table_for() -> None:
    with pytest.raises(InputError, match="sm_80"):
        tuned_tilings("sm_10")
    with pytest.raises(InputError, match="dim 300"):
        tiling_for("sm_90", "float16", 300, 1)
    with pytest.raises(InputError, match="no tilings for 'sm_10'"):
        pool_formats("sm_10")
    assert target_of(torch.device("cpu")) == "sm_80"
