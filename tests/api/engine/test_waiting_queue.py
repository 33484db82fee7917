"""Order of admission: deficit round robin by hand, and what holds for any sequence of calls."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrie.api import Completion, Request
from kvtrie.api.engine.fair_queue import FairQueue
from kvtrie.api.engine.request import Job
from kvtrie.api.engine.waiting_queue import FifoQueue, WaitingQueue
from kvtrie.prefix_tree import InputError, Namespace, Root

ROOTS = {
    name: Root(Namespace(name, weights="w", adapter="", chunk_tokens=16), 1, 0.0) for name in ("a", "b", "c")
}


class Arrivals:
    """Makes jobs, numbered as they arrive."""

    def __init__(self) -> None:
        self._numbers = count()

    def job(self, scope: str, tokens: int = 100, priority: int = 0) -> Job:
        """A job that costs so many tokens."""
        request = Request([1] * (tokens - 1), ROOTS[scope], max_new_tokens=1, priority=priority)
        return Job(Completion(request, 0.0), next(self._numbers))


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


def drain(queue: WaitingQueue, most: int = 1000) -> list[Job]:
    """All jobs in the order of their admission, each at its full cost."""
    order: list[Job] = []
    while len(order) < most and (job := queue.first()) is not None:
        assert job is queue.first(), "looking changes nothing"
        queue.taken(job, job.weight_tokens)
        order.append(job)
    return order


def shown(jobs: list[Job]) -> str:
    return "".join(job.scope for job in jobs)


def test_equal_jobs_of_two_scopes_alternate(arrivals: Arrivals) -> None:
    queue = FairQueue(quantum=100)
    for scope in "aaaaa" + "bbb":
        queue.put(arrivals.job(scope, 100))
    assert shown(drain(queue)) == "abababaa"


def test_turns_are_counted_in_tokens(arrivals: Arrivals) -> None:
    """By hand, with 100 tokens a round and jobs of 50 of a, and of 250 of b:

    round 1: a has 100 and takes two jobs (credit 0); b has 100 and takes one of 250 (credit -150)
    round 2: a 100, two jobs; b -50, none
    round 3: a 100, two jobs; b 50, one of 250 (credit -200)
    round 4: a 100, two jobs; b -100
    round 5: a 100, two jobs; b 0, none yet
    round 6: a 100, its last two jobs; b 100, its last one
    """
    queue = FairQueue(quantum=100)
    for _ in range(12):
        queue.put(arrivals.job("a", 50))
    for _ in range(3):
        queue.put(arrivals.job("b", 250))
    assert shown(drain(queue)) == "aab" + "aa" + "aab" + "aa" + "aa" + "aab"


def test_smaller_priorities_come_first_and_within_one_scope_only(arrivals: Arrivals) -> None:
    queue = FairQueue(quantum=100)
    late, urgent, usual = (
        arrivals.job("a", priority=9),
        arrivals.job("a", priority=-1),
        arrivals.job("a", priority=0),
    )
    other, other_urgent = arrivals.job("b", priority=9), arrivals.job("b", priority=-9)
    for job in (late, urgent, usual, other, other_urgent):
        queue.put(job)
    assert drain(queue) == [urgent, other_urgent, usual, other, late]


def test_what_was_set_aside_has_its_old_place(arrivals: Arrivals) -> None:
    queue = FairQueue(quantum=100)
    first, second, third = (arrivals.job("a") for _ in range(3))
    other = arrivals.job("b")
    for job in (first, second, third, other):
        queue.put(job)
    queue.set_aside(first)
    assert queue.first() is other, "another scope is looked at next"
    queue.put(first)
    assert drain(queue) == [other, first, second, third]


def test_the_preempted_come_first_and_are_not_charged_again(arrivals: Arrivals) -> None:
    queue = FairQueue(quantum=100)
    jobs = [arrivals.job("a"), arrivals.job("a"), arrivals.job("b")]
    for job in jobs:
        queue.put(job)
    queue.taken(jobs[0], 100)
    queue.put_back(jobs[0])
    assert queue.first() is jobs[0]
    assert queue.first(passing_over={"a"}) is jobs[2]
    queue.taken(jobs[0], 100)
    # Charged twice, a would have had to sit out two rounds.
    assert drain(queue) == [jobs[2], jobs[1]]


def test_a_cost_smaller_than_expected_is_what_is_charged(arrivals: Arrivals) -> None:
    """A prompt that is cached costs what it produces."""
    queue = FairQueue(quantum=100)
    jobs = [arrivals.job("a", 1000), arrivals.job("a", 1000), arrivals.job("b", 1000)]
    for job in jobs:
        queue.put(job)
    queue.taken(jobs[0], 10)
    assert queue.first() is jobs[1]


def test_a_scope_that_comes_back_at_once_still_owes_what_it_had(arrivals: Arrivals) -> None:
    """One job at a time, but each of ten rounds: without debts it would get ten times what the other gets."""
    queue = FairQueue(quantum=100)
    for _ in range(60):
        queue.put(arrivals.job("a", 100))
    spent: Counter[str] = Counter()
    queue.put(arrivals.job("b", 1000))
    for _ in range(40):
        job = queue.first()
        assert job is not None
        queue.taken(job, job.weight_tokens)
        spent[job.scope] += job.weight_tokens
        if job.scope == "b":
            queue.put(arrivals.job("b", 1000))
    assert abs(spent["a"] - spent["b"]) <= 1000


def test_fifo_is_the_order_of_arrival_whoever_asks(arrivals: Arrivals) -> None:
    queue = FifoQueue()
    jobs = [arrivals.job(scope, priority=-place) for place, scope in enumerate("aaab")]
    for job in jobs:
        queue.put(job)
    assert queue.first(passing_over={"a"}) is None, "nobody is let past"
    queue.set_aside(jobs[0])
    queue.put(jobs[0])
    assert drain(queue) == jobs


def test_a_round_of_no_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="quantum=0"):
        FairQueue(quantum=0)


@pytest.mark.parametrize("make", [FairQueue, FifoQueue])
@given(
    calls=st.lists(
        st.tuples(st.sampled_from("prstx"), st.sampled_from("abc"), st.integers(2, 300)), max_size=60
    )
)
def test_every_job_is_in_it_once(
    make: type[FairQueue] | type[FifoQueue], calls: list[tuple[str, str, int]]
) -> None:
    """Against plain sets: put, put back, set aside, taken and removed in any order."""
    queue: WaitingQueue = make()
    arrivals, inside, aside, taken = Arrivals(), list[Job](), list[Job](), list[Job]()
    for call, scope, tokens in calls:
        if call == "p":
            inside.append(arrivals.job(scope, tokens, priority=tokens % 3))
            queue.put(inside[-1])
        elif call == "r" and (taken or aside):
            if aside:
                inside.append(aside.pop())
                queue.put(inside[-1])
            else:
                inside.append(taken.pop())
                queue.put_back(inside[-1])
        elif call == "x" and inside:
            queue.remove(inside.pop(tokens % len(inside)))
        elif call in "st" and (first := queue.first()) is not None:
            inside.remove(first)
            if call == "s":
                queue.set_aside(first)
                aside.append(first)
            else:
                queue.taken(first, tokens)
                taken.append(first)
        assert set(queue) == set(inside) and len(queue) == len(inside)
        assert queue.tokens == sum(job.weight_tokens for job in inside)
        assert set(queue.scopes) == {job.scope for job in inside}
        assert (queue.first() is None) == (not inside)


@settings(max_examples=50)
@given(
    costs=st.lists(st.tuples(st.sampled_from("ab"), st.integers(2, 500)), min_size=1, max_size=60),
    quantum=st.integers(1, 600),
)
def test_nobody_waits_for_more_than_a_turn_of_each_other_scope(
    costs: list[tuple[str, int]], quantum: int
) -> None:
    """A scope that always has jobs gets its part: it is never behind another such scope by more than a quantum and
    one job of either."""
    queue, arrivals = FairQueue(quantum), Arrivals()
    most = max(tokens for _, tokens in costs)
    for scope, tokens in costs:
        queue.put(arrivals.job(scope, tokens))
    left = Counter(scope for scope, _ in costs)
    spent: Counter[str] = Counter()
    while left["a"] and left["b"]:
        job = queue.first()
        assert job is not None
        queue.taken(job, job.weight_tokens)
        spent[job.scope] += job.weight_tokens
        left[job.scope] -= 1
        if left["a"] and left["b"]:
            assert abs(spent["a"] - spent["b"]) <= quantum + 2 * most
