"""Every invariant of a plan, for tests and for KVTRIE_CHECK=1."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrie.prefix_tree.plan import Plan, PlanSequence


def check_plan(plan: Plan, sequences: Sequence[PlanSequence], chunk_tokens: int) -> None:
    """Asserts that each sequence reads exactly its chunks in order, and each chunk is read in one run only.

    Raises:
        AssertionError: names what does not hold.
    """
    assert sorted(plan.order) == list(range(len(sequences))), f"order {plan.order}"
    assert plan.row_starts[0] == 0
    for place, index in enumerate(plan.order):
        rows = plan.row_starts[place + 1] - plan.row_starts[place]
        assert rows == sequences[index].rows, f"sequence {index} has {rows} rows in the plan"
    runs = plan.runs
    assert plan.shared == tuple(run for run in runs if run.readers > 1)
    seen: set[int] = set()
    read: list[list[int]] = [[] for _ in sequences]
    position = [0] * len(sequences)
    for run in runs:
        assert run.slots and run.readers > 0, f"empty run {run}"
        assert len(run.slots) == -(-run.tokens // chunk_tokens), f"{run.tokens} tokens in {run.slots}"
        assert seen.isdisjoint(run.slots), f"slots {sorted(seen.intersection(run.slots))} are in two runs"
        seen.update(run.slots)
        for place in range(run.first_reader, run.end_reader):
            assert position[place] == run.start_token, f"reader {place} has a gap before {run.start_token}"
            position[place] += run.tokens
            read[place] += run.slots
    for place, index in enumerate(plan.order):
        sequence = sequences[index]
        assert position[place] == sequence.context_tokens, f"sequence {index} reads {position[place]} tokens"
        assert read[place] == list(sequence.slots)[: len(read[place])], f"sequence {index} reads other slots"
