"""What planning costs: 64 sequences over 16 prompts of 4,096 tokens, as integers and as launch arrays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from bench.measure import median_seconds
from kvtrie.chunk_kernels import ChunkPool, DecodeLanes, LaneSequence
from kvtrie.chunk_kernels.launch_items import plan_work
from kvtrie.chunk_kernels.tilings import Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from kvtrie.prefix_tree import ChunkShape, Plan, Planner, PlanSequence, check_plan, make_plan

CHUNK_TOKENS = 64
PROMPT_CHUNKS = 64
PROMPTS = 16
SEQUENCES = 64
SHAPE = ChunkShape(32, 8, CHUNK_TOKENS, 128, 128, "bfloat16")
GROUP = 4
REPEATS = 300


def run() -> dict[str, float]:
    """Medians in microseconds."""
    slots = count()
    prompts = [[next(slots) for _ in range(PROMPT_CHUNKS)] for _ in range(PROMPTS)]
    tokens = PROMPT_CHUNKS * CHUNK_TOKENS + 10
    sequences = [PlanSequence([*prompts[i % PROMPTS], next(slots)], tokens, 1) for i in range(SEQUENCES)]
    check_plan(make_plan(sequences, CHUNK_TOKENS), sequences, CHUNK_TOKENS)
    planner = Planner(CHUNK_TOKENS)
    planner.join_all((name, s.slots, s.context_tokens) for name, s in enumerate(sequences))
    rows, newcomer = [1] * (SEQUENCES + 1), [*prompts[3], next(slots)]

    def join(_: int) -> None:
        planner.join(SEQUENCES, newcomer, tokens)
        planner.plan(rows)

    def leave(_: int) -> None:
        planner.leave(SEQUENCES)
        planner.plan(rows)

    joins, leaves = [], []
    for i in range(REPEATS):
        joins.append(median_seconds(join, [i]))
        leaves.append(median_seconds(leave, [i]))
    plan = planner.plan(rows)
    return {
        "plan_first_us": _median(lambda: make_plan(sequences, CHUNK_TOKENS)),
        "plan_append_us": _append_us(sequences),
        "plan_join_us": float(np.median(joins)) * 1e6,
        "plan_leave_us": float(np.median(leaves)) * 1e6,
        "plan_launch_arrays_us": _median(lambda: _arrays(plan)),
    }


def _append_us(sequences: list[PlanSequence]) -> float:
    """A decode step in which every sequence grows inside its last chunk: what the host has to find out."""
    pool = ChunkPool(ChunkShape(1, 8, CHUNK_TOKENS, 16, 16, "bfloat16"), 2 * PROMPTS * PROMPT_CHUNKS)
    lanes = DecodeLanes(pool, SEQUENCES, GROUP, Tilings(), CostModel())
    state = [LaneSequence(name, s.slots, s.context_tokens, name) for name, s in enumerate(sequences)]
    assert lanes.update(state), "gate: the plan fits"
    tokens = list(range(SEQUENCES))

    def append(_: int) -> None:
        lanes.advanced(tokens)
        lanes.update(state)

    # Fewer steps than the last chunk has room for: the next one after that is another plan.
    return median_seconds(append, range(CHUNK_TOKENS - sequences[0].context_tokens % CHUNK_TOKENS - 1)) * 1e6


def _arrays(plan: Plan) -> None:
    work = plan_work(plan, plan.order, SHAPE, GROUP, Tilings(), CostModel())
    work.pack(np.zeros(work.sizes.packed, np.int32), work.sizes)


def _median(call: Callable[[], object]) -> float:
    return median_seconds(lambda _: call(), range(REPEATS)) * 1e6
