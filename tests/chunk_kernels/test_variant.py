"""Windows, softcap, ALiBi and sinks on the CPU path and in the reference, against an fp64 oracle."""

from __future__ import annotations

import random

import pytest
import torch

from kvtrie.chunk_kernels import PLAIN, StepSequence, Variant, attend, attend_reference, prepare_step
from kvtrie.chunk_kernels.partial import composed_attention, merge, with_sinks
from kvtrie.chunk_kernels.torch_items import RunItem, torch_work
from kvtrie.chunk_kernels.variant_items import DenseItem, varied_items
from kvtrie.prefix_tree.errors import InputError
from tests.chunk_kernels.forests import CHUNK, random_forest, random_pool
from tests.chunk_kernels.oracle import oracle

SCALE = 0.17
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
SINKS = torch.tensor([0.5, -1.0, 3.0, 0.0])

VARIANTS = {
    "window 1": Variant(window=1),
    "window 5": Variant(window=5),
    "window 20": Variant(window=20),
    "window of two chunks": Variant(window=2 * CHUNK),
    "window 50": Variant(window=50),
    "window that hides nothing": Variant(window=1000),
    "softcap": Variant(softcap=3.0),
    "softcap that saturates": Variant(softcap=0.05),
    "alibi": Variant(slopes=SLOPES),
    "sinks": Variant(sinks=SINKS),
    "no sink but one": Variant(sinks=torch.tensor([-torch.inf, -torch.inf, 0.0, -torch.inf])),
    "window softcap": Variant(window=33, softcap=5.0),
    "window sinks": Variant(window=17, sinks=SINKS),
    "window alibi": Variant(window=17, slopes=SLOPES),
    "all": Variant(window=33, softcap=5.0, slopes=SLOPES, sinks=SINKS),
}


@pytest.fixture(params=["blocks as shipped", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, so that small forests are cut in every way that large ones are."""
    if request.param == "small blocks":
        monkeypatch.setattr("kvtrie.chunk_kernels.variant_items.BLOCK_ROWS", 6)
        monkeypatch.setattr("kvtrie.chunk_kernels.variant_items.BLOCK_TOKENS", 13)
        monkeypatch.setattr("kvtrie.chunk_kernels.variant_items.LEAST_SQUARE_ROWS", 3)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "scattered"])
@pytest.mark.parametrize(("kv_heads", "key_dim", "value_dim"), [(4, 32, 32), (2, 32, 32), (1, 24, 40)])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_any_forest_matches_the_oracle(
    variant: Variant, kv_heads: int, key_dim: int, value_dim: int, adjacent: bool
) -> None:
    torch.manual_seed(0)
    rng = random.Random(f"{kv_heads} {adjacent}")
    for _ in range(3):
        pool = random_pool(kv_heads, key_dim, value_dim)
        sequences = random_forest(rng, pool.slots, adjacent=adjacent)
        query = torch.randn(sum(s.rows for s in sequences), 4, key_dim)
        expected, expected_lse = oracle(query, pool, 1, sequences, SCALE, variant)
        for out, lse in (
            attend(query, pool, 1, prepare_step(sequences, pool), SCALE, variant),
            attend_reference(query, pool, 1, sequences, SCALE, variant),
        ):
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "variant",
    [Variant(window=40), Variant(window=150), Variant(window=300, sinks=SINKS), Variant(softcap=4.0)],
    ids=["less than a square", "less than a block", "more than a block", "no window"],
)
def test_a_long_prompt_on_a_long_prefix_matches_the_oracle(variant: Variant) -> None:
    """Blocks as they ship: several of them, with keys that no row, some rows and all rows see."""
    torch.manual_seed(1)
    pool = random_pool(2, 32, 32, slots=160)
    shared = list(range(80))
    sequences = [
        StepSequence([*shared, *range(80, 125)], 80 * CHUNK, 700),
        StepSequence([*shared, 130], 80 * CHUNK + 4, 1),
        StepSequence([*shared[:29], 131], 29 * CHUNK + 4, 1),
    ]
    query = torch.randn(702, 4, 32)
    out, lse = attend(query, pool, 0, prepare_step(sequences, pool), SCALE, variant)
    expected, expected_lse = oracle(query, pool, 0, sequences, SCALE, variant)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_layers_of_one_step_may_differ() -> None:
    """Items are made once per step and kind of layer: a layer must not get another one's."""
    torch.manual_seed(2)
    pool = random_pool(2, 32, 32)
    sequences = random_forest(random.Random(4), pool.slots, adjacent=True)
    query = torch.randn(sum(s.rows for s in sequences), 4, 32)
    step = prepare_step(sequences, pool)
    for variant in (*VARIANTS.values(), PLAIN, *VARIANTS.values()):
        out, _ = attend(query, pool, 0, step, SCALE, variant)
        expected, _ = oracle(query, pool, 0, sequences, SCALE, variant)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_first_token_has_only_itself() -> None:
    torch.manual_seed(3)
    pool = random_pool(2, 32, 32)
    sequences = [StepSequence([4], 0, 1), StepSequence([7], 0, 9)]
    query = torch.randn(10, 4, 32)
    for variant in VARIANTS.values():
        out, lse = attend(query, pool, 0, prepare_step(sequences, pool), SCALE, variant)
        expected, expected_lse = oracle(query, pool, 0, sequences, SCALE, variant)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_runs_outside_every_window_are_not_read() -> None:
    """Nor are the keys of a run that every row has left behind: NaN there would reach the output."""
    torch.manual_seed(4)
    pool = random_pool(2, 32, 32)
    shared = list(range(40))
    sequences = [StepSequence([*shared, slot], 40 * CHUNK + slot - 50, 1) for slot in (50, 55, 60)]
    query = torch.randn(3, 4, 32)
    expected, _ = oracle(query, pool, 0, sequences, SCALE, Variant(window=100))
    for tensor in (pool.k, pool.v):
        tensor[:, :, shared[:33]] = torch.nan
    for variant in (Variant(window=100), Variant(window=100, softcap=1e6)):
        out, _ = attend(query, pool, 0, prepare_step(sequences, pool), SCALE, variant)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_what_every_row_sees_takes_the_fast_path() -> None:
    pool = random_pool(2, 32, 32)
    shared = list(range(40))
    sequences = [StepSequence([*shared, slot], 40 * CHUNK + slot - 50, 1) for slot in (50, 60)]
    step = prepare_step(sequences, pool)
    plain = torch_work(step).items
    assert varied_items(step, Variant(window=40 * CHUNK + 11)) is plain
    assert varied_items(step, Variant(sinks=SINKS)) is plain
    items = varied_items(step, Variant(window=200))
    (fast,) = (item for item in items if isinstance(item, RunItem))
    (masked,) = (item for item in items if isinstance(item, DenseItem))
    # Rows at 640 and 650 both see keys from 451 on; from 441 on one of them does.
    assert (masked.start, masked.span.tokens) == (441, 10)
    assert (fast.start, fast.span.tokens) == (451, 640 - 451)


def test_bf16_is_within_rounding_of_the_oracle() -> None:
    torch.manual_seed(5)
    pool = random_pool(2, 32, 32, "bfloat16")
    sequences = random_forest(random.Random(5), pool.slots, adjacent=True)
    query = torch.randn(sum(s.rows for s in sequences), 4, 32).bfloat16()
    for variant in VARIANTS.values():
        out, _ = attend(query, pool, 0, prepare_step(sequences, pool), SCALE, variant)
        expected, _ = oracle(query, pool, 0, sequences, SCALE, variant)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_row_that_sees_nothing() -> None:
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    mask = torch.zeros(3, 5)
    mask[1] = -torch.inf
    out, lse = composed_attention(query, key, key, 1.0, mask=mask)
    assert (out[:, :, 1] == 0).all()
    assert (lse[:, :, 1] == -torch.inf).all()
    assert out[:, :, [0, 2]].isfinite().all()
    assert out[:, :, [0, 2]].abs().amin() > 0
    out, lse = composed_attention(query, key[:, :, :0], key[:, :, :0], 1.0)
    assert out.shape == query.shape
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_empty_partials_merge() -> None:
    nothing, no_lse = torch.zeros(2, 3, 8), torch.full((2, 3), -torch.inf)
    some, some_lse = torch.randn(2, 3, 8), torch.randn(2, 3)
    out, lse = merge(nothing, no_lse, nothing, no_lse)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    for parts in ((some, some_lse, nothing, no_lse), (nothing, no_lse, some, some_lse)):
        out, lse = merge(*parts)
        assert torch.equal(out, some)
        assert torch.equal(lse, some_lse)
    sinks = torch.tensor([0.5, -1.0, -torch.inf])
    out, lse = with_sinks(nothing, no_lse, sinks)
    assert (out == 0).all()
    assert torch.equal(lse, sinks.expand(2, 3))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"window": 0}, "window must be at least 1 token, got 0"),
        ({"window": -3}, "got -3"),
        ({"softcap": 0.0}, "softcap must be positive and finite, got 0.0"),
        ({"softcap": -1.0}, "got -1.0"),
        ({"softcap": float("nan")}, "got nan"),
        ({"softcap": float("inf")}, "got inf"),
        (
            {"slopes": torch.zeros(4, dtype=torch.bfloat16)},
            r"slopes must be fp32 \[q_heads\], got torch.bfloat16",
        ),
        ({"sinks": torch.zeros(1, 4)}, r"sinks must be fp32 \[q_heads\], got torch.float32 \[1, 4\]"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Variant(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (Variant(sinks=torch.zeros(3)), "sinks are for 3 heads, the query has 4"),
        (Variant(slopes=torch.zeros(8)), "slopes are for 8 heads, the query has 4"),
        (Variant(slopes=torch.zeros(4, device="meta")), "slopes are on meta, the query is on cpu"),
        (Variant(sinks=torch.zeros(8)[::2]), "sinks have stride 2"),
    ],
)
def test_a_variant_for_another_query_is_refused(variant: Variant, says: str) -> None:
    pool = random_pool(2, 32, 32)
    step = prepare_step([StepSequence([0], 3, 1)], pool)
    with pytest.raises(InputError, match=says):
        attend(torch.randn(1, 4, 32), pool, 0, step, 1.0, variant)
