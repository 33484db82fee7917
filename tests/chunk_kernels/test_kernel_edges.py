"""The attention kernel beyond plain forests: quantised elements, nothing to see, idle programs, far slots."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton")

from kvtrie.chunk_kernels import PLAIN, ChunkPool, StepSequence, Variant, prepare_step
from kvtrie.chunk_kernels.attend_triton import attend_stored, attend_triton
from kvtrie.chunk_kernels.launch_plan import LaunchPlan, launch_plan
from kvtrie.chunk_kernels.quantise import StoredLayer
from kvtrie.chunk_kernels.tilings import Tiling, Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from tests.chunk_kernels.forests import CHUNK, random_forest, random_pool
from tests.chunk_kernels.oracle import oracle
from tests.chunk_kernels.tolerance import most_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_FP8 = DEVICE == "cuda" and torch.cuda.get_device_capability() >= (8, 9) and not torch.version.hip
COMPILED = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter's tl.dot cannot multiply bf16")
NEEDS_FP8 = pytest.mark.skipif(not HAS_FP8, reason="no GPU with float8_e4m3fn")
SCALE = 0.17
pytestmark = pytest.mark.usefixtures("poisoned_outputs")
TILINGS = Tilings(Tiling(block_m=16, block_n=32), Tiling(block_m=16, block_n=32))
PIECES = CostModel(processors=1 << 20, launch_bytes=0, partial_share=1e9, least_piece_tokens=32)
"""Everything shared, in small pieces: private runs are cut too."""
EVERYTHING = Variant(
    window=33,
    softcap=5.0,
    slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625], device=DEVICE),
    sinks=torch.tensor([1.0, 2.0, -3.0, 0.5], device=DEVICE),
)


@dataclass(frozen=True)
class Forest:
    """A random forest over a pool of two KV heads, two query heads each, with its launch."""

    pool: ChunkPool
    sequences: list[StepSequence]
    query: torch.Tensor
    launch: LaunchPlan

    def attend(
        self, launch: LaunchPlan | None = None, variant: Variant = PLAIN
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By the kernel, layer 1."""
        return attend_triton(self.query, self.pool, 1, launch or self.launch, SCALE, variant)


def make_forest(seed: int, key_dim: int = 32, value_dim: int = 32, dtype: str = "float32") -> Forest:
    torch.manual_seed(seed)
    pool = random_pool(2, key_dim, value_dim, dtype, device=DEVICE)
    sequences = random_forest(random.Random(seed), pool.slots, adjacent=False, most_rows=9)
    rows = sum(sequence.rows for sequence in sequences)
    query = torch.randn(rows, 4, key_dim, device=DEVICE).to(pool.dtype)
    return Forest(pool, sequences, query, launch_plan(prepare_step(sequences, pool), 2, TILINGS, PIECES))


def quantised(like: torch.Tensor, kv_format: str) -> StoredLayer:
    """Random bytes with a scale per token and head; what they stand for is about as large as noise."""
    scale = (torch.rand(like.shape[:-1], device=DEVICE) + 0.2) / 60
    if kv_format == "int8":
        elements = torch.randint(-127, 128, like.shape, device=DEVICE).to(torch.int8)
    else:
        elements = (torch.randn(like.shape, device=DEVICE) * 60).to(torch.float8_e4m3fn)
    return StoredLayer(elements, scale, like.dtype)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dims", [(64, 64), (80, 48)], ids=str)
@pytest.mark.parametrize("kv_format", ["int8", pytest.param("fp8", marks=NEEDS_FP8)])
@pytest.mark.parametrize("dtype", ["float32", "float16", pytest.param("bfloat16", marks=COMPILED)])
def test_quantised_elements_are_read_as_what_they_stand_for(
    dtype: str, kv_format: str, dims: tuple[int, int], seed: int
) -> None:
    forest = make_forest(seed, *dims, dtype)
    keys, values = quantised(forest.pool.k[1], kv_format), quantised(forest.pool.v[1], kv_format)
    exact = random_pool(2, *dims, device=DEVICE)
    for side, stored in ((exact.k, keys), (exact.v, values)):
        assert stored.scale is not None
        side[1] = stored.elements.float() * stored.scale[..., None]
    for variant in (PLAIN, EVERYTHING) if dtype == "float32" else (PLAIN, Variant(window=20)):
        out, lse = attend_stored(forest.query, keys, values, forest.launch, SCALE, variant)
        expected, expected_lse = oracle(forest.query, exact, 1, forest.sequences, SCALE, variant)
        allowed = most_error(forest.query, exact, 1, forest.sequences, SCALE, variant, expected)
        assert float((out.double() - expected).abs().max()) <= allowed
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_rows_whose_window_holds_no_key_are_empty(seed: int) -> None:
    forest = make_forest(seed)
    beyond = replace(forest.launch, positions=forest.launch.positions + 10_000)
    out, lse = forest.attend(beyond, Variant(window=20))
    assert torch.all(out == 0)
    assert torch.all(lse == -torch.inf)
    sinks = EVERYTHING.sinks
    assert sinks is not None
    out, lse = forest.attend(beyond, Variant(window=20, sinks=sinks))
    assert torch.all(out == 0), "a sink takes weight and gives nothing"
    torch.testing.assert_close(lse, sinks.expand_as(lse))


def test_an_item_without_run_and_partials_finishes_empty_rows() -> None:
    forest = make_forest(1)
    items, index = forest.launch.items_finish.clone(), forest.launch.merge_index.clone()
    emptied = int(items[0, 8])
    items[items[:, 8] == emptied, 5] = 0
    index[emptied, 1] = 0
    out, lse = forest.attend(replace(forest.launch, items_finish=items, merge_index=index))
    expected, expected_lse = forest.attend()
    first, rows = (int(field) for field in items[0, :2])
    empty = torch.zeros(len(out), dtype=torch.bool, device=DEVICE)
    empty[forest.launch.order[first : first + rows].long()] = True
    assert torch.all(out[empty] == 0)
    assert torch.all(lse[empty] == -torch.inf)
    assert torch.equal(out[~empty], expected[~empty])
    assert torch.equal(lse[~empty], expected_lse[~empty])


def test_programs_beyond_the_counts_do_nothing() -> None:
    forest = make_forest(2)
    launch = forest.launch
    assert launch.sizes.partial_items > 0
    expected, expected_lse = forest.attend()
    # What a former plan left behind: items over the same rows that would make every one of them empty.
    stale = [items.clone() for items in (launch.items_partial, launch.items_finish)]
    for items in stale:
        items[:, 5] = 0
    stale[1][:, 8] = launch.sizes.sequences
    nothing_to_merge = torch.zeros(1, 2, dtype=torch.int32, device=DEVICE)
    captured = replace(
        launch,
        sizes=launch.sizes._replace(
            partial_items=2 * launch.sizes.partial_items, finish_items=2 * launch.sizes.finish_items
        ),
        items_partial=torch.cat([launch.items_partial, stale[0]]),
        items_finish=torch.cat([launch.items_finish, stale[1]]),
        merge_index=torch.cat([launch.merge_index, nothing_to_merge]),
    )
    out, lse = forest.attend(captured)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    stale_counts = captured.counts.clone()
    stale_counts[:2] *= 2
    out, _ = forest.attend(replace(captured, counts=stale_counts))
    assert torch.any(out == 0), "the stale items would have shown"


def test_offsets_beyond_32_bits() -> None:
    forest = make_forest(1, 64, 64)
    near = [quantised(side[1], "int8") for side in (forest.pool.k, forest.pool.v)]
    expected, expected_lse = attend_stored(forest.query, *near, forest.launch, SCALE, PLAIN)
    slots = forest.pool.slots
    skipped = 2**31 // (CHUNK * 64)
    far = []
    for stored in near:
        assert stored.scale is not None
        # Never written between the heads, so on the CPU most of it is never there.
        elements = stored.elements.new_empty(skipped + 2 * slots, CHUNK, 64)
        scale = stored.scale.new_empty(skipped + 2 * slots, CHUNK)
        elements[skipped:] = stored.elements.flatten(0, 1)
        scale[skipped:] = stored.scale.flatten(0, 1)
        heads = (2, skipped + slots)
        far.append(
            StoredLayer(
                elements.as_strided((*heads, CHUNK, 64), (slots * CHUNK * 64, CHUNK * 64, 64, 1)),
                scale.as_strided((*heads, CHUNK), (slots * CHUNK, CHUNK, 1)),
                stored.dtype,
            )
        )
    moved = replace(forest.launch, slots=forest.launch.slots + skipped)
    out, lse = attend_stored(forest.query, *far, moved, SCALE, PLAIN)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
