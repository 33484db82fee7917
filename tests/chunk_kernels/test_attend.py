"""The two-phase path against the plain reference, over random forests of shared prefixes."""

from __future__ import annotations

import random

import pytest
import torch

from kvtrie.chunk_kernels import StepSequence, attend, attend_reference, prepare_step
from kvtrie.prefix_tree.errors import InputError
from tests.chunk_kernels.forests import CHUNK, random_forest, random_pool


@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "scattered"])
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 1), (2, 3), (1, 7), (2, 4), (1, 8)])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(32, 32), (24, 40)])
def test_any_forest_matches_the_reference(
    kv_heads: int, group: int, key_dim: int, value_dim: int, adjacent: bool
) -> None:
    torch.manual_seed(0)
    rng = random.Random(f"{kv_heads} {group} {key_dim} {adjacent}")
    for _ in range(8):
        pool = random_pool(kv_heads, key_dim, value_dim)
        sequences = random_forest(rng, pool.slots, adjacent=adjacent)
        query = torch.randn(sum(s.rows for s in sequences), kv_heads * group, key_dim)
        step = prepare_step(sequences, pool)
        for layer in range(2):
            out, lse = attend(query, pool, layer, step, 0.17)
            expected, expected_lse = attend_reference(query, pool, layer, sequences, 0.17)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_bf16_is_within_rounding_of_the_reference() -> None:
    torch.manual_seed(1)
    pool = random_pool(2, 32, 32, "bfloat16")
    sequences = random_forest(random.Random(5), pool.slots, adjacent=True)
    query = torch.randn(sum(s.rows for s in sequences), 4, 32).bfloat16()
    out, _ = attend(query, pool, 0, prepare_step(sequences, pool), 32**-0.5)
    expected, _ = attend_reference(query, pool, 0, sequences, 32**-0.5)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_every_key_counts() -> None:
    """The comparison is sharp enough to see one wrong token in a shared run."""
    torch.manual_seed(2)
    pool = random_pool(2, 32, 32)
    sequences = [StepSequence([0, 1, 2, slot], 3 * CHUNK + 3, 1) for slot in (3, 4, 5)]
    query = torch.randn(3, 4, 32)
    step = prepare_step(sequences, pool)
    before, _ = attend(query, pool, 0, step, 0.17)
    pool.v[0, :, 1, 7] += 1
    after, _ = attend(query, pool, 0, step, 0.17)
    assert ((after - before).abs().amax((1, 2)) > 1e-4).all()


def test_padding_lanes_never_leak() -> None:
    """Tokens beyond a sequence's length, in its own slot, change nothing."""
    torch.manual_seed(3)
    pool = random_pool(1, 32, 32)
    sequences = [StepSequence([slot], length, 1) for slot, length in ((4, 3), (5, 9), (6, 0))]
    query = torch.randn(3, 2, 32)
    step = prepare_step(sequences, pool)
    before, _ = attend(query, pool, 0, step, 0.17)
    pool.v[0, :, 4, 4:] = 1e9
    pool.k[0, :, 6, 1:] = 1e9
    after, _ = attend(query, pool, 0, step, 0.17)
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sequence", "says"),
    [
        (StepSequence([0], CHUNK, 1), "need 2 chunks"),
        (StepSequence([0], 3, 0), "at least one row"),
        (StepSequence([96], 3, 1), "outside the pool"),
        (StepSequence([-1], 3, 1), "outside the pool"),
    ],
)
def test_a_step_that_cannot_be_is_refused(sequence: StepSequence, says: str) -> None:
    with pytest.raises(InputError, match=says):
        prepare_step([sequence], random_pool(1, 8, 8))


def test_a_query_that_does_not_fit_is_refused() -> None:
    pool = random_pool(2, 32, 32)
    step = prepare_step([StepSequence([0], 3, 1)], pool)
    for query, says in (
        (torch.randn(2, 2, 32), "rows"),
        (torch.randn(1, 2, 16), "key dim"),
        (torch.randn(1, 3, 32), "multiple"),
        (torch.randn(1, 2, 32).half(), "float16"),
    ):
        with pytest.raises(InputError, match=says):
            attend(query, pool, 0, step, 1.0)


def test_another_pool_s_step_or_a_layer_that_is_not_there_is_refused() -> None:
    pool, other = random_pool(2, 32, 32), random_pool(2, 32, 32)
    step, query = prepare_step([StepSequence([0], 3, 1)], pool), torch.randn(1, 2, 32)
    with pytest.raises(InputError, match="another pool"):
        attend(query, other, 0, step, 1.0)
    with pytest.raises(InputError, match="layer 2 is outside"):
        attend(query, pool, 2, step, 1.0)
    with pytest.raises(InputError, match="at least one sequence"):
        prepare_step([], pool)
