"""When sharing pays, and how runs are cut into pieces."""

from __future__ import annotations

from kvtrie.chunk_kernels.work_split import CostModel, SharedSpan, piece_tokens, split_work
from kvtrie.prefix_tree import ChunkShape, Plan, PlanSequence, make_plan

CHUNK = 64
SHAPE = ChunkShape(1, 8, CHUNK, 128, 128, "bfloat16")
GROUP = 4


def forest(readers: int, shared_chunks: int, rows: int = 1) -> Plan:
    shared = list(range(shared_chunks))
    return make_plan(
        [PlanSequence([*shared, 1000 + i], shared_chunks * CHUNK + 1, rows) for i in range(readers)], CHUNK
    )


def test_a_long_prefix_of_many_readers_is_read_once() -> None:
    shared, own_from = split_work(forest(32, 64), SHAPE, GROUP, CostModel())
    assert shared == [SharedSpan(0, 32, 0, 64)]
    assert own_from == [64] * 32


def test_no_regret() -> None:
    """One reader, or too little saved to pay for a second launch: plain paged decoding."""
    for plan in (forest(1, 64), forest(2, 1), forest(8, 4)):
        assert split_work(plan, SHAPE, GROUP, CostModel()) == ([], [0] * len(plan.order))


def test_a_run_that_costs_more_partials_than_it_saves_is_left_to_its_branches() -> None:
    """256 sequences over 128 pairs of twins: each pair's short run goes down, the long one above stays."""
    above = list(range(64))
    sequences = [PlanSequence([*above, 1000 + i // 2, 2000 + i], 65 * CHUNK + 1, rows=64) for i in range(256)]
    plan = make_plan(sequences, CHUNK)
    assert len(plan.shared) == 129
    shared, own_from = split_work(plan, SHAPE, GROUP, CostModel())
    assert shared == [SharedSpan(0, 256, 0, 64)]
    assert own_from == [64] * 256


def test_a_run_that_goes_down_is_read_with_the_one_below_it() -> None:
    """The first chunk alone saves too little; below it two long runs, which then begin at chunk 0."""
    cheap = CostModel(launch_bytes=0)
    sequences = [
        PlanSequence([0, *range(100 + 64 * (i // 2), 164 + 64 * (i // 2)), 1000 + i], 65 * CHUNK + 1, rows=32)
        for i in range(4)
    ]
    shared, own_from = split_work(make_plan(sequences, CHUNK), SHAPE, GROUP, cheap)
    assert sorted(shared) == [SharedSpan(0, 2, 0, 65), SharedSpan(2, 4, 0, 65)]
    assert own_from == [65] * 4


def test_pieces_fill_the_device_and_no_more() -> None:
    cost = CostModel(processors=100, waves=2, least_piece_tokens=64)
    alone = piece_tokens(8192, 4, 8192, SHAPE, 64, cost)
    assert 8192 // alone * SHAPE.kv_heads >= 150, "one sequence fills the device"
    busy = piece_tokens(8192, 4, 64 * 8192, SHAPE, 64, cost)
    assert busy == 8192, "64 of them do so uncut"


def test_partials_cost_a_small_share_of_what_a_piece_reads() -> None:
    cost = CostModel(processors=1 << 20)
    for pairs in (4, 128, 1024):
        piece = piece_tokens(1 << 20, pairs, 1 << 20, SHAPE, 64, cost)
        assert pairs * 2 * 4 * 129 <= 0.12 * piece * 512 * 1.01
        assert piece % 64 == 0
