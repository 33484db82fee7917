"""A step's prompt tokens, divided by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtrie.api.engine.prefill_rows import Prefill, equal_parts, prefill_rows


def test_one_prompt_alone_gets_all() -> None:
    assert prefill_rows([Prefill("a", 5000)], 2048, 0.5) == [2048]
    assert prefill_rows([Prefill("a", 50)], 2048, 0.5) == [50]


def test_a_long_prompt_leaves_a_part_to_a_short_one_and_takes_what_that_leaves() -> None:
    assert prefill_rows([Prefill("a", 131_072), Prefill("a", 100)], 2048, 0.5) == [1948, 100]


def test_two_long_prompts_do_not_hold_up_a_short_one() -> None:
    prompts = [Prefill("a", 131_072), Prefill("a", 131_072), Prefill("a", 100)]
    assert prefill_rows(prompts, 2048, 0.5) == [1024, 924, 100]


def test_the_oldest_goes_on_however_many_short_ones_come() -> None:
    prompts = [Prefill("a", 131_072)] + [Prefill("a", 100)] * 50
    rows = prefill_rows(prompts, 2000, 0.25)
    assert rows[0] == 500
    assert rows[1:16] == [100] * 15
    assert sum(rows) == 2000


def test_the_part_is_what_one_prompt_may_have() -> None:
    assert prefill_rows([Prefill("a", 900)] * 4, 1000, 0.25) == [250] * 4


def test_who_is_waited_for_comes_before_the_shorter_ones() -> None:
    prompts = [Prefill("a", 1000), Prefill("a", 10), Prefill("a", 300, is_awaited=True), Prefill("a", 20)]
    assert prefill_rows(prompts, 400, 0.5) == [200, 0, 200, 0]


def test_smaller_priorities_come_before_shorter_ones() -> None:
    prompts = [Prefill("a", 1000), Prefill("a", 10, priority=1), Prefill("a", 300)]
    assert prefill_rows(prompts, 400, 0.5) == [200, 0, 200]


def test_scopes_have_equal_parts_whatever_they_ask_for() -> None:
    prompts = [Prefill("a", 1000)] * 10 + [Prefill("b", 1000), Prefill("c", 100)]
    rows = prefill_rows(prompts, 900, 1.0)
    assert (sum(rows[:10]), rows[10], rows[11]) == (400, 400, 100)


def test_where_there_are_more_scopes_than_tokens_they_take_turns() -> None:
    prompts = [Prefill(scope, 10) for scope in "abc"]
    assert [prefill_rows(prompts, 1, 0.5, turn).index(1) for turn in range(4)] == [0, 1, 2, 0]


def test_parts_are_equal_up_to_what_each_wants() -> None:
    assert equal_parts([10, 100, 100], 90) == [10, 40, 40]
    assert equal_parts([10, 10], 90) == [10, 10]
    assert equal_parts([5, 5, 5], 4) == [2, 1, 1]
    assert equal_parts([], 4) == []


@given(
    prompts=st.lists(
        st.builds(Prefill, st.sampled_from("abc"), st.integers(2, 300), st.integers(0, 2), st.booleans()),
        max_size=12,
    ),
    budget=st.integers(1, 400),
    part=st.floats(0.01, 1.0),
    turn=st.integers(0, 9),
)
def test_the_budget_is_used_and_not_exceeded(
    prompts: list[Prefill], budget: int, part: float, turn: int
) -> None:
    rows = prefill_rows(prompts, budget, part, turn)
    assert sum(rows) == min(budget, sum(prompt.rows for prompt in prompts))
    assert all(0 <= given <= prompt.rows for given, prompt in zip(rows, prompts))
