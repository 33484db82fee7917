"""The plan, over random forests: everything read once, by exactly its readers, in order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrie.prefix_tree import Plan, PlanSequence, Run, check_plan, make_plan
from kvtrie.prefix_tree.planner import Planner

CHUNK = 4


@st.composite
def forests(draw: st.DrawFn) -> list[PlanSequence]:
    """Shared chunks are whole; a sequence may end at one, or go on in private ones, the last unfinished."""
    shared: list[list[int]] = [[]]
    slots = draw(st.permutations(range(120)))
    free = iter(slots)
    for _ in range(draw(st.integers(0, 8))):
        above = shared[draw(st.integers(0, len(shared) - 1))]
        shared.append([*above, *(next(free) for _ in range(draw(st.integers(1, 4))))])
    sequences = []
    for _ in range(draw(st.integers(0, 9))):
        path = shared[draw(st.integers(0, len(shared) - 1))]
        path = path[: draw(st.integers(0, len(path)))]
        private = draw(st.integers(0, 3 * CHUNK))
        # Slots reserved for what this step will compute are not read yet.
        ahead = draw(st.integers(0, 2))
        own = [next(free) for _ in range(-(-private // CHUNK) + ahead)]
        sequences.append(PlanSequence([*path, *own], len(path) * CHUNK + private, draw(st.integers(1, 5))))
    return sequences


def runs_of(plan: Plan, place: int) -> list[Run]:
    return [run for run in plan.runs if run.first_reader <= place < run.end_reader]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(forests())
def test_each_sequence_reads_exactly_its_chunks_in_order(sequences: list[PlanSequence]) -> None:
    plan = make_plan(sequences, CHUNK)
    check_plan(plan, sequences, CHUNK)
    for place, index in enumerate(plan.order):
        sequence, position, slots = sequences[index], 0, []
        for run in runs_of(plan, place):
            assert run.start_token == position
            assert run.slots
            assert len(run.slots) == -(-run.tokens // CHUNK)
            position += run.tokens
            slots += run.slots
        assert position == sequence.context_tokens
        assert slots == list(sequence.slots)[: -(-sequence.context_tokens // CHUNK)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(forests())
def test_each_chunk_is_in_one_run_with_all_its_readers(sequences: list[PlanSequence]) -> None:
    """Readers are a range, so finding each reader inside it proves that they stand side by side."""
    plan = make_plan(sequences, CHUNK)
    planned = [slot for run in plan.runs for slot in run.slots]
    assert len(planned) == len(set(planned))
    for run in plan.runs:
        assert 0 <= run.first_reader < run.end_reader <= len(sequences)
        assert run.readers == run.end_reader - run.first_reader
        for slot in run.slots:
            readers = {i for i, s in enumerate(sequences) if slot in s.slots[: -(-s.context_tokens // CHUNK)]}
            assert readers == set(plan.order[run.first_reader : run.end_reader])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(forests())
def test_runs_are_maximal_and_ancestors_come_first(sequences: list[PlanSequence]) -> None:
    plan = make_plan(sequences, CHUNK)
    for place in range(len(plan.order)):
        runs = runs_of(plan, place)
        for above, below in pairwise(runs):
            assert above.start_token < below.start_token
            assert (above.first_reader, above.end_reader) != (below.first_reader, below.end_reader)
            assert above.first_reader <= below.first_reader
            assert below.end_reader <= above.end_reader
            assert above.tokens == len(above.slots) * CHUNK
    for run in plan.runs:
        assert run.tokens == len(run.slots) * CHUNK or run.readers == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(forests())
def test_rows_follow_the_order_of_the_sequences(sequences: list[PlanSequence]) -> None:
    plan = make_plan(sequences, CHUNK)
    assert sorted(plan.order) == list(range(len(sequences)))
    assert len(plan.row_starts) == len(sequences) + 1
    for place, index in enumerate(plan.order):
        assert plan.row_starts[place + 1] - plan.row_starts[place] == sequences[index].rows
    assert plan.row_starts[0] == 0


def test_the_plan_drawn_in_the_docstring() -> None:
    sequences = [
        PlanSequence([0, 1, 2, 3, 4, 9, 10], 7 * CHUNK, 1),
        PlanSequence([0, 1, 2, 3, 4, 12], 5 * CHUNK + 1, 2),
        PlanSequence([0, 1, 2, 5, 11], 5 * CHUNK, 3),
    ]
    plan = make_plan(sequences, CHUNK)
    assert plan.order == (0, 1, 2)
    assert plan.row_starts == (0, 1, 3, 6)
    assert {run[:5] for run in plan.runs} == {
        ((0, 1, 2), 0, 3 * CHUNK, 0, 3),
        ((3, 4), 3 * CHUNK, 2 * CHUNK, 0, 2),
        ((9, 10), 5 * CHUNK, 2 * CHUNK, 0, 1),
        ((12,), 5 * CHUNK, 1, 1, 2),
        ((5, 11), 3 * CHUNK, 2 * CHUNK, 2, 3),
    }
    assert [run.branches for run in plan.runs if run.readers > 1] == [2, 2]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(forests())
def test_branches_are_the_runs_right_below_and_the_readers_that_end(sequences: list[PlanSequence]) -> None:
    plan = make_plan(sequences, CHUNK)
    for run in plan.runs:
        below = {
            next(
                (
                    r
                    for r in plan.runs
                    if r.start_token == run.start_token + run.tokens
                    and r.first_reader <= place < r.end_reader
                ),
                place,
            )
            for place in range(run.first_reader, run.end_reader)
        }
        assert run.branches == len(below)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(forests(), st.data())
def test_a_planner_that_was_patched_equals_one_made_anew(
    sequences: list[PlanSequence], data: st.DataObject
) -> None:
    planner, present = Planner(CHUNK), {}
    for _ in range(data.draw(st.integers(0, 20))):
        if not sequences:
            break
        name = data.draw(st.integers(0, len(sequences) - 1))
        whole = sequences[name]
        tokens = data.draw(st.integers(0, whole.context_tokens))
        slots = whole.slots[: -(-tokens // CHUNK)]
        if name not in present:
            planner.join(name, slots, tokens)
        elif data.draw(st.booleans()):
            planner.move(name, slots, tokens)
        else:
            planner.leave(name)
            del present[name]
            continue
        present[name] = (slots, tokens)
    rows = [s.rows for s in sequences]
    anew = Planner(CHUNK)
    anew.join_all((name, *found) for name, found in present.items())
    assert planner.plan(rows) == anew.plan(rows)
    assert len(planner) == len(present)


def test_nothing_to_read_is_no_run() -> None:
    assert make_plan([], CHUNK) == Plan(CHUNK, (), (0,), (), (), (), ())
    plan = make_plan([PlanSequence([7], 0, 3)], CHUNK)
    assert (plan.order, plan.row_starts, plan.runs) == ((0,), (0, 3), ())


def test_depth_has_no_limit() -> None:
    """Ten thousand nested branches."""
    depth = 10_000
    slots = list(range(depth))
    sequences = [PlanSequence(slots[: depth - i], (depth - i) * CHUNK, 1) for i in range(0, depth, 10)]
    plan = make_plan(sequences, CHUNK)
    assert len(plan.runs) == len(sequences)
    assert sum(run.tokens for run in plan.runs) == depth * CHUNK


def test_check_plan_names_what_does_not_hold() -> None:
    sequences = [PlanSequence([0, 1, 5], 3 * CHUNK, 1), PlanSequence([0, 1, 6], 3 * CHUNK, 1)]
    plan = make_plan(sequences, CHUNK)
    check_plan(plan, sequences, CHUNK)
    run = plan.shared[0]
    for broken, reason in (
        (replace(plan, order=(0, 0)), "order"),
        (replace(plan, row_starts=(0, 2, 3)), "rows"),
        (replace(plan, shared=(run._replace(slots=(0, 7)),)), "other slots"),
        (replace(plan, shared=(run._replace(tokens=1),)), "tokens in"),
        (replace(plan, shared=(run, run)), "two runs"),
        (replace(plan, own_from=(1, 2)), "two runs"),
        (replace(plan, own_from=(3, 2)), "reads 8 tokens"),
    ):
        with pytest.raises(AssertionError, match=reason):
            check_plan(broken, sequences, CHUNK)
