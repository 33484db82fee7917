"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import breaker
from kvtrie.store.breaker import CircuitBreaker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def fail_once(circuit: CircuitBreaker) -> None:
    ticket = circuit.enter(probe_seconds=2.0)
    assert ticket is not None
    circuit.failed(ticket)


def test_the_pause_doubles_up_to_the_longest(clock: SimpleNamespace) -> None:
    circuit = CircuitBreaker(retry_after_seconds=1.0, longest_seconds=5.0)
    for pause in (1.0, 2.0, 4.0, 5.0, 5.0):
        fail_once(circuit)
        assert circuit.wait_seconds() == pause
        clock.seconds += pause - 0.25
        assert circuit.enter(probe_seconds=2.0) is None
        clock.seconds += 0.25
        assert circuit.wait_seconds() == 0.0


def test_an_outage_may_last_for_ever(clock: SimpleNamespace) -> None:
    circuit = CircuitBreaker(retry_after_seconds=1.0, longest_seconds=5.0)
    for _ in range(2000):
        fail_once(circuit)
        clock.seconds += 5.0
    assert circuit.wait_seconds() == 0.0


def test_one_call_tries_alone_and_its_success_closes(clock: SimpleNamespace) -> None:
    circuit = CircuitBreaker(retry_after_seconds=1.0, longest_seconds=5.0)
    fail_once(circuit)
    clock.seconds += 1.0
    probe = circuit.enter(probe_seconds=2.0)
    assert probe is not None
    assert circuit.enter(probe_seconds=2.0) is None
    circuit.succeeded(probe)
    assert circuit.enter(probe_seconds=2.0) is not None
    assert circuit.enter(probe_seconds=2.0) is not None
    fail_once(circuit)
    assert circuit.wait_seconds() == 1.0


def test_a_call_that_never_reports_gives_way_to_the_next(clock: SimpleNamespace) -> None:
    circuit = CircuitBreaker(retry_after_seconds=1.0, longest_seconds=5.0)
    fail_once(circuit)
    clock.seconds += 1.0
    assert circuit.enter(probe_seconds=2.0) is not None
    clock.seconds += 2.0
    assert circuit.enter(probe_seconds=2.0) is not None


def test_calls_that_began_before_the_outage_count_once(clock: SimpleNamespace) -> None:
    circuit = CircuitBreaker(retry_after_seconds=1.0, longest_seconds=64.0)
    tickets = [circuit.enter(probe_seconds=2.0) for _ in range(5)]
    for ticket in tickets:
        assert ticket is not None
        circuit.failed(ticket)
    assert circuit.wait_seconds() == 1.0
    circuit.succeeded(tickets[0])  # an answer from before says nothing about now
    assert circuit.wait_seconds() == 1.0


@pytest.mark.parametrize("pause", [0.0, -1.0, 6.0])
def test_times_that_cannot_work_are_named(pause: float) -> None:
    with pytest.raises(InputError, match=f"got {pause}"):
        CircuitBreaker(retry_after_seconds=pause, longest_seconds=5.0)
