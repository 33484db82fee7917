"""Requests that leave before they are through: expired, aborted by id, cancelled."""

from __future__ import annotations

import threading

from bench.faked_engine import CHUNK, Faked
from kvtrie.api import EngineConfig

SECONDS = 60.0


class Clock:
    """Seconds that only a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_request_ends_at_its_deadline_wherever_it_is() -> None:
    clock = Clock()
    faked = Faked(clock=clock, config=EngineConfig(max_running=2, step_tokens=CHUNK))
    shared = faked.prompt(20 * CHUNK)
    running = faked.submit(shared, 50, deadline_seconds=5.0)
    parked = faked.submit(shared, 50, deadline_seconds=5.0)
    also_running = faked.submit(40 * CHUNK, 50)
    waiting = faked.submit(10, 50, deadline_seconds=5.0)
    patient = faked.submit(10, 2, deadline_seconds=500.0)
    faked.step(3)
    assert (len(faked.engine._scheduler.running), parked.done, waiting.done) == (2, False, False)
    clock.now += 4.9
    faked.step()
    assert not running.done
    clock.now += 0.1
    faked.step()
    assert [c.finish_reason for c in (running, parked, waiting)] == ["expired"] * 3
    assert all(c.error is None for c in (running, parked, waiting))
    faked.run()
    assert (also_running.finish_reason, patient.finish_reason) == ("length", "length")
    faked.assert_balanced()


def test_what_an_expired_request_has_computed_stays_cached() -> None:
    clock = Clock()
    faked = Faked(clock=clock, config=EngineConfig(step_tokens=4 * CHUNK))
    prompt = faked.prompt(10 * CHUNK)
    faked.submit(prompt, deadline_seconds=1.0)
    faked.step(2)
    clock.now += 2
    faked.step()
    again = faked.submit(prompt)
    faked.run()
    assert again.cached_tokens == 8 * CHUNK


def test_a_deadline_that_is_met_leaves_nothing() -> None:
    clock = Clock()
    faked = Faked(clock=clock)
    completion = faked.submit(10, 2, deadline_seconds=1.0)
    faked.run()
    clock.now += 10
    faked.step()
    assert completion.finish_reason == "length"
    assert not faked.engine._scheduler._deadlines


def test_an_abort_ends_all_requests_of_an_id_and_needs_no_step() -> None:
    faked = Faked(config=EngineConfig(max_running=1))
    running = faked.submit(20, 50, request_id="x")
    faked.step()
    waiting = faked.submit(20, 50, request_id="x")
    other = faked.submit(20, 5, request_id="y")
    faked.engine.abort("x")
    assert (running.finish_reason, waiting.finish_reason, other.finish_reason) == (
        "cancelled",
        "cancelled",
        None,
    )
    faked.engine.abort("x")
    faked.engine.abort("never heard of")
    faked.run()
    assert other.finish_reason == "length"
    assert not faked.engine._ids
    faked.assert_balanced()


def test_an_abort_in_the_middle_of_a_step_counts_at_the_next_one() -> None:
    faked = Faked()
    completion = faked.submit(20, 50, request_id="x")
    seen: list[bool] = []

    def abort() -> None:
        # In the thread that steps, and in another one, which finds the lock taken.
        faked.engine.abort("x")
        thread = threading.Thread(target=faked.engine.abort, args=("x",))
        thread.start()
        thread.join(SECONDS)
        seen.append(completion.done)

    faked.steps.at_step = abort
    faked.step()
    assert seen == [False]
    faked.step()
    assert completion.finish_reason == "cancelled"
    assert len(completion.tokens) == 1


def test_a_cancelled_request_that_has_not_arrived_yet() -> None:
    faked = Faked()
    completion = faked.submit(20)
    completion.cancel()
    completion.cancel()
    faked.step()
    assert completion.finish_reason == "cancelled"
    assert not faked.steps.rows
    faked.assert_balanced()
