"""Figures of outcomes whose times are known."""

from __future__ import annotations

from typing import Any

import pytest

from kvtrie.api.load.doubts import doubts
from kvtrie.api.load.measures import Slo, Spread, measure, rate, spread
from kvtrie.api.load.outcome import LoadRun, Outcome
from kvtrie.api.load.plan import LoadPlan, RequestForm
from kvtrie.api.load.prompt import LoadPrompt, Message
from kvtrie.prefix_tree.errors import InputError

FORM = RequestForm("chat", 3)


def plan(count: int, is_open: bool = True) -> LoadPlan:
    prompts = [LoadPrompt(0, (Message("user", "u"),))] * count
    if is_open:
        return LoadPlan(prompts, FORM, offsets=[0.0] * count)
    return LoadPlan(prompts, FORM, concurrency=1)


def answered(index: int, due: float, texts: list[float], ended: float, **more: Any) -> Outcome:
    fields = {"tenant": 0, "sent": due, "completion_tokens": len(texts), "prompt_tokens": 100, **more}
    return Outcome(index, due=due, text_times=texts, ended=ended, **fields)


def failed(index: int, due: float, kind: str, ended: float, message: str = "") -> Outcome:
    return Outcome(index, 0, due, due, ended, failure=kind, message=message)


def ran(outcomes: list[Outcome], **more: Any) -> LoadRun:
    fields = {"planned": len(outcomes), "seconds": 10.0, "cpu_seconds": 1.0, **more}
    return LoadRun(outcomes, **fields)


def test_percentiles_by_their_definition() -> None:
    # Of 0..100 the value at percentile p is p; between two values it is on the line between them.
    assert spread(range(101)) == Spread(101, 50.0, 50.0, 90.0, 95.0, 99.0, 100.0)
    found = spread([4.0, None, 2.0])
    assert found == Spread(2, 3.0, 3.0, pytest.approx(3.8), pytest.approx(3.9), pytest.approx(3.98), 4.0)
    assert spread([None]) is None


def test_figures_of_four_requests() -> None:
    outcomes = [
        # TTFT 1, gaps 0.5 and 1.5, TPOT 1, end to end 4.
        answered(0, 0.0, [1.0, 1.5, 3.0], 4.0, cached_tokens=0),
        # TTFT 2; 4 tokens in two pieces: TPOT 2/3, one gap of 2.
        answered(1, 1.0, [3.0, 5.0], 5.0, completion_tokens=4, cached_tokens=80, sent=1.25),
        # TTFT 3, one token.
        answered(2, 2.0, [5.0], 6.0, cached_tokens=40),
        failed(3, 5.0, "HTTP 429", 5.5, "full"),
    ]
    found = measure(plan(4), ran(outcomes), Slo(2.0, 0.9))
    assert (found.requests, found.failed, found.failures) == (4, 1, {"HTTP 429": 1})
    assert found.failure_messages == {"HTTP 429": "full"}
    assert found.ttft is not None and found.itl is not None and found.tpot is not None
    assert (found.ttft.count, found.ttft.p50, found.ttft.max, found.ttft.mean) == (3, 2.0, 3.0, 2.0)
    assert (found.itl.count, found.itl.p50, found.itl.max) == (3, 1.5, 2.0)
    assert (found.tpot.count, found.tpot.max, found.tpot.mean) == (2, 1.0, pytest.approx(5 / 6))
    assert found.end_to_end is not None and found.end_to_end.p50 == 4.0
    assert found.lag is not None and (found.lag.max, found.lag.mean) == (0.25, 0.0625)
    # From 0 to 6 seconds: three answers; the first has too long a TPOT, the third too long a TTFT.
    assert (found.seconds, found.completed_rate, found.goodput, found.within_slo) == (6.0, 0.5, 1 / 6, 0.25)
    assert (found.prompt_tokens, found.cached_tokens, found.cached_share) == (300, 120, 0.4)
    assert (found.completion_tokens, found.output_tokens_per_second) == (8, 8 / 6)
    # Four requests in five seconds are three gaps.
    assert (found.offered_rate, found.sent_rate) == (0.6, 0.6)
    closed = measure(plan(4, is_open=False), ran(outcomes), Slo())
    assert (closed.offered_rate, closed.lag) == (None, None)


def test_warm_up_is_in_no_figure() -> None:
    outcomes = [
        failed(0, 0.0, "cut", 50.0),
        answered(1, 1.0, [9.0], 9.0),
        answered(2, 10.0, [10.5], 11.0),
        answered(3, 11.0, [11.5], 12.0),
    ]
    found = measure(plan(4), ran(outcomes), Slo(), warm_up=2)
    assert (found.requests, found.failed, found.seconds, found.completed_rate) == (2, 0, 2.0, 1.0)
    assert found.ttft is not None and found.ttft.max == 0.5
    with pytest.raises(InputError, match="4 were sent, 4 of them"):
        measure(plan(4), ran(outcomes), Slo(), warm_up=4)


def test_tenants_apart() -> None:
    outcomes = [
        answered(0, 0.0, [1.0], 1.0, tenant=0, cached_tokens=50),
        answered(1, 0.0, [5.0], 5.0, tenant=1, cached_tokens=0),
        answered(2, 0.0, [3.0], 3.0, tenant=0, cached_tokens=100),
    ]
    first, second = measure(plan(3), ran(outcomes), Slo()).tenants
    assert (first.tenant, first.requests, first.cached_share) == (0, 2, 0.75)
    assert first.ttft is not None and first.ttft.p50 == 2.0
    assert (second.tenant, second.requests, second.cached_share) == (1, 1, 0.0)


def test_what_the_server_does_not_report() -> None:
    silent = [answered(0, 0.0, [1.0, 2.0], 2.0, prompt_tokens=None, completion_tokens=None)]
    found = measure(plan(1), ran(silent), Slo())
    assert (found.prompt_tokens, found.cached_share, found.completion_tokens) == (None, None, None)
    assert found.output_tokens_per_second == 1.0
    assert any("pieces of text are counted" in one for one in doubts(found, ran(silent)))
    unsaid = [answered(0, 0.0, [1.0], 2.0)]
    found = measure(plan(1), ran(unsaid), Slo())
    assert (found.prompt_tokens, found.cached_tokens, found.cached_share) == (100, None, None)
    assert any("no cached tokens" in one for one in doubts(found, ran(unsaid)))
    # A server that names them only where there are some.
    some = [answered(0, 0.0, [1.0], 2.0), answered(1, 0.0, [1.0], 2.0, cached_tokens=50)]
    assert measure(plan(2), ran(some), Slo()).cached_share == 0.25


def test_no_answer_at_all() -> None:
    found = measure(plan(2), ran([failed(0, 0.0, "cut", 1.0), failed(1, 0.5, "cut", 2.0)]), Slo())
    assert (found.ttft, found.tpot, found.itl, found.end_to_end) == (None, None, None, None)
    assert (found.failed, found.goodput, found.completed_rate) == (2, 0.0, 0.0)


def test_rates() -> None:
    assert rate([0.0, 1.0, 2.0]) == 1.0
    assert rate([5.0]) is None and rate([1.0, 1.0]) is None


def test_limits_must_be_above_zero() -> None:
    for make in (lambda: Slo(0.0, 1.0), lambda: Slo(1.0, 0.0)):
        with pytest.raises(InputError, match="above 0"):
            make()


def test_a_client_that_keeps_up_has_no_doubts() -> None:
    outcomes = [answered(n, float(n), [n + 0.5], n + 1.0, cached_tokens=1) for n in range(10)]
    run = ran(outcomes, loop_delays=[0.0001] * 100)
    assert doubts(measure(plan(10), run, Slo()), run) == []


def test_a_client_that_is_the_bottleneck_says_so() -> None:
    late = [answered(n, float(n), [n + 2.0], n + 2.5, sent=n + 1.5, cached_tokens=1) for n in range(10)]
    run = ran(late)
    assert "sent late: p99 1500 ms" in doubts(measure(plan(10), run, Slo()), run)[0]
    slower = [
        answered(n, float(n), [n * 2 + 1.0], n * 2 + 1.0, sent=n * 2.0, cached_tokens=1) for n in range(10)
    ]
    run = ran(slower)
    said = doubts(measure(plan(10), run, Slo()), run)
    assert "1 requests per second were due, and 0.5 were sent" in said
    in_time = [answered(n, float(n), [n + 0.5], n + 1.0, cached_tokens=1) for n in range(10)]
    for more, words in (
        ({"waited_for_connection": 3}, "3 requests were due while all connections were in use"),
        ({"loop_delays": [0.05] * 50}, "50 ms late (p99) in noticing"),
        ({"cpu_seconds": 9.5}, "a core 95% busy"),
        ({"was_interrupted": True, "planned": 30}, "10 of 30 requests were answered"),
    ):
        run = ran(in_time, **more)
        (only,) = doubts(measure(plan(10), run, Slo()), run)
        assert words in only
