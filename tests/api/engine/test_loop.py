"""The engine's own thread: it steps while there is work, ends in order, and fails where all can see it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from bench.faked_engine import TOKEN, Faked
from kvtrie.api import Completion, EngineConfig, EngineLoop, PrefixCachedModel
from kvtrie.prefix_tree import EngineStopped, InputError, QueueFull
from tests.api.balance import CHUNK, assert_balanced, assert_same, greedy, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

SECONDS = 60.0


class Broken(Exception):
    """A broken invariant."""


@pytest.fixture
def faked() -> Faked:
    return Faked(20_000, check=False)


@pytest.fixture
def loop(faked: Faked) -> Iterator[EngineLoop]:
    made = EngineLoop(faked.engine)
    made.start()
    yield made
    made.stop(drain=False)


def held_up(faked: Faked) -> tuple[threading.Event, threading.Event]:
    """Steps wait in their middle until the second event is set; the first one is set by then."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(SECONDS)

    faked.steps.at_step = wait
    return begun, go_on


def submit_on(faked: Faked, made: list[Completion]) -> None:
    """Submits for ever."""
    while True:
        made.append(faked.submit(5, 2))


# ---- stepping


def test_requests_are_served_and_nobody_steps_by_hand(faked: Faked, loop: EngineLoop) -> None:
    completions = [faked.submit(20, 5) for _ in range(20)]
    assert all(completion.wait(SECONDS) for completion in completions)
    assert all(completion.tokens == [TOKEN] * 5 for completion in completions)


def test_it_sleeps_while_there_is_nothing_to_do(faked: Faked, loop: EngineLoop) -> None:
    assert faked.submit(20).wait(SECONDS)
    steps, used = len(faked.steps.rows), time.process_time()
    began = time.monotonic()
    time.sleep(0.3)
    assert time.process_time() - used < (time.monotonic() - began) / 2
    assert len(faked.steps.rows) == steps
    assert faked.submit(20).wait(SECONDS)


def test_wait_run_and_streams_wait_for_it_and_make_no_step(faked: Faked, loop: EngineLoop) -> None:
    stepping: set[int] = set()
    faked.steps.at_step = lambda: stepping.add(threading.get_ident())
    completions = [faked.submit(20, 5) for _ in range(3)]
    faked.engine.wait(completions)
    assert all(completion.done for completion in completions)
    more = [faked.submit(20, 50) for _ in range(3)]
    faked.engine.run()
    assert all(completion.done for completion in more)
    one = faked.submit(20, 30)
    seen = 0
    while not one.done:
        faked.engine.wait_for_token(one, seen)
        assert one.done or len(one.tokens) > seen
        seen = len(one.tokens)
    assert stepping == {loop._thread.ident}  # type: ignore[union-attr]


def test_a_completion_of_another_engine_is_not_waited_for(faked: Faked, loop: EngineLoop) -> None:
    other = Faked()
    theirs = other.submit(20)
    with pytest.raises(InputError, match="a request of another engine"):
        faked.engine.wait([faked.submit(20), theirs])


def test_one_request_s_error_is_its_own(faked: Faked, loop: EngineLoop) -> None:
    def fail() -> None:
        faked.steps.at_step = lambda: None
        raise Broken

    faked.steps.at_step = fail
    bad = faked.submit(20)
    assert bad.wait(SECONDS)
    assert isinstance(bad.error, Broken)
    assert faked.submit(20).wait(SECONDS)
    assert not loop.failed.is_set()


def test_cancels_and_deadlines_are_kept(faked: Faked, loop: EngineLoop) -> None:
    cancelled, late = faked.submit(20, 100_000), faked.submit(20, 100_000, deadline_seconds=0.05)
    aborted = faked.submit(20, 100_000, request_id="x")
    cancelled.cancel()
    faked.engine.abort("x")
    assert all(completion.wait(SECONDS) for completion in (cancelled, late, aborted))
    assert [c.finish_reason for c in (cancelled, late, aborted)] == ["cancelled", "expired", "cancelled"]


# ---- ending


def test_draining_lets_requests_end_and_takes_no_new_ones(faked: Faked, loop: EngineLoop) -> None:
    begun, go_on = held_up(faked)
    completions = [faked.submit(20, 5) for _ in range(5)]
    assert begun.wait(SECONDS)
    drained: list[bool] = []
    stopping = threading.Thread(target=lambda: drained.append(loop.stop(timeout=SECONDS)))
    stopping.start()
    with pytest.raises(EngineStopped, match="about to stop"):
        submit_on(faked, completions)
    go_on.set()
    stopping.join(SECONDS)
    assert drained == [True]
    assert all(completion.finish_reason == "length" for completion in completions)
    assert faked.engine.loop is None
    faked.assert_balanced()


def test_what_is_not_drained_in_time_is_cancelled(faked: Faked, loop: EngineLoop) -> None:
    completions = [faked.submit(20, 100_000) for _ in range(3)]
    assert not loop.stop(drain=True, timeout=0.05)
    assert all(completion.finish_reason == "cancelled" for completion in completions)
    faked.assert_balanced()


def test_stopping_at_once_ends_with_the_step(faked: Faked, loop: EngineLoop) -> None:
    begun, go_on = held_up(faked)
    completion = faked.submit(20, 100_000)
    assert begun.wait(SECONDS)
    stopping = threading.Thread(target=loop.stop, kwargs={"drain": False})
    stopping.start()
    waiting = threading.Thread(target=faked.engine.wait, args=([completion],))
    waiting.start()
    go_on.set()
    for thread in (stopping, waiting):
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert completion.finish_reason == "cancelled"
    assert len(completion.tokens) == 1
    faked.assert_balanced()


def test_afterwards_it_is_stepped_by_hand_or_by_another_loop(faked: Faked, loop: EngineLoop) -> None:
    assert loop.stop()
    assert loop.stop(), "a second time is fine"
    completion = faked.submit(20, 3)
    faked.engine.run()
    assert completion.tokens == [TOKEN] * 3
    with pytest.raises(InputError, match="started before"):
        loop.start()
    again = EngineLoop(faked.engine)
    again.start()
    with pytest.raises(InputError, match="has a loop already"):
        EngineLoop(faked.engine).start()
    assert faked.submit(20).wait(SECONDS)
    assert again.stop()


def test_stopping_a_loop_that_was_not_started(faked: Faked) -> None:
    assert EngineLoop(faked.engine).stop()


def test_stop_in_the_loop_s_own_thread_is_refused(faked: Faked, loop: EngineLoop) -> None:
    raised: list[BaseException] = []

    def stop(_: Completion) -> None:
        with pytest.raises(InputError, match="in the loop's own thread") as error:
            loop.stop()
        raised.append(error.value)

    completion = faked.submit(20)
    completion.add_done_callback(stop)
    assert completion.wait(SECONDS)
    assert loop.stop()
    assert len(raised) == 1


def test_submitting_while_it_stops_leaves_nobody_waiting() -> None:
    """A request is served, cancelled or refused, whenever the loop ends."""
    for _ in range(30):
        faked = Faked(check=False)
        loop = EngineLoop(faked.engine)
        loop.start()
        made: list[Completion] = []

        def submit(faked: Faked = faked, made: list[Completion] = made) -> None:
            with suppress(EngineStopped):
                while faked.engine.loop is not None:
                    made.append(faked.submit(5, 2))

        submitting = threading.Thread(target=submit)
        submitting.start()
        time.sleep(0.002)
        loop.stop(drain=False)
        submitting.join(SECONDS)
        assert not submitting.is_alive()
        # The last one may have been submitted to an engine that has no loop any more.
        assert all(completion.done for completion in made[:-1])
        faked.engine.run()
        faked.assert_balanced()


# ---- failing


@pytest.mark.parametrize("error", [Broken, SystemExit])
def test_an_error_that_is_no_request_s_ends_it_for_all(
    faked: Faked, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    loop = EngineLoop(faked.engine)
    begun, go_on = held_up(faked)
    loop.start()
    running = faked.submit(20, 100)
    assert begun.wait(SECONDS)
    arriving = faked.submit(20, 100)
    told: list[bool] = []
    loop.ended.add(lambda: told.append(loop.failed.is_set()))

    def fail() -> None:
        raise error("a slot is lost")

    monkeypatch.setattr(faked.memory, "check_if_asked", fail)
    go_on.set()
    assert loop.failed.wait(SECONDS)
    for completion in (running, arriving):
        assert completion.wait(SECONDS)
        assert isinstance(completion.error, EngineStopped)
        assert "a slot is lost" in str(completion.error)
        assert isinstance(completion.error.__cause__, error)
    assert running.error is not arriving.error, "each may be raised, in a thread of its own"
    assert isinstance(loop.error, error)
    assert not loop.stop()
    assert told == [True]
    with pytest.raises(EngineStopped, match="a slot is lost"):
        faked.submit(20)
    faked.assert_balanced()


def test_whoever_waits_when_it_fails_is_told(faked: Faked, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EngineLoop(faked.engine)
    begun, go_on = held_up(faked)
    loop.start()
    completion = faked.submit(20, 100)
    assert begun.wait(SECONDS)
    waiting = [
        threading.Thread(target=wait)
        for wait in (
            faked.engine.run,
            lambda: faked.engine.wait([completion]),
            lambda: faked.engine.wait_for_token(completion, 10),
        )
    ]
    for thread in waiting:
        thread.start()

    def fail() -> None:
        raise Broken

    monkeypatch.setattr(faked.memory, "check_if_asked", fail)
    go_on.set()
    for thread in waiting:
        thread.join(SECONDS)
        assert not thread.is_alive()
    loop.stop()


# ---- everything at once


def test_cancels_aborts_and_deadlines_at_any_moment_in_a_small_pool() -> None:
    """Four threads, three tenants, prompts that share beginnings, and a queue that is full now and then."""
    faked = Faked(60, check=False, config=EngineConfig(step_tokens=64, max_running=12, max_waiting=40))
    families = [faked.prompt(5 * 16) for _ in range(4)]
    loop = EngineLoop(faked.engine)
    loop.start()
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(400):
            prompt = [
                *chance.choice(families)[: chance.randrange(80)],
                *(chance.randrange(999) for _ in range(9)),
            ]
            new, name = chance.randint(1, 60), f"{seed}.{number}"
            try:
                completion = faked.submit(
                    prompt,
                    new,
                    tenant=chance.choice("abc"),
                    eos=chance.choice([(), {TOKEN + 1}]),
                    priority=chance.randrange(3),
                    deadline_seconds=chance.choice([None, None, 0.01]),
                    request_id=name,
                )
            except QueueFull as error:
                time.sleep(min(0.01, error.retry_after_seconds))
                continue
            disturbed = chance.choice(["", "", "cancel", "abort"])
            if disturbed:
                time.sleep(chance.uniform(0, 0.003))
            if disturbed == "cancel":
                completion.cancel()
            elif disturbed == "abort":
                faked.engine.abort(name)
            if chance.random() < 0.5 and not completion.wait(SECONDS):
                wrong.append(completion)
            if completion.error is not None or completion.tokens != [TOKEN] * len(completion.tokens):
                wrong.append(completion)
            if completion.finish_reason == "length" and len(completion.tokens) != new:
                wrong.append(completion)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert loop.stop(timeout=SECONDS)
    assert not wrong
    assert not faked.engine._ids
    assert not faked.engine._scheduler._deadlines
    faked.assert_balanced()


# ---- a real model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


def test_everything_at_once_beside_generate(model: PreTrainedModel) -> None:
    """Submits, streams, warm and `generate` from several threads, in a pool that holds a part of it."""
    rows = prompts([3 * CHUNK + 1, 2 * CHUNK, 4 * CHUNK, 20, 30, 11], shared=CHUNK)
    expected = [greedy(model, row, 6) for row in rows]
    with wrapped(model, chunks=16, engine=EngineConfig(step_tokens=24)) as cached:
        loop = EngineLoop(cached.engine)
        loop.start()
        wrong: list[Any] = []

        def work(place: int) -> None:
            try:
                for turn in range(6):
                    row, new = rows[(place + turn) % 6], expected[(place + turn) % 6]
                    if turn % 3 == 0:
                        output = cached.generate(
                            torch.tensor([row]), max_new_tokens=6, do_sample=False, eos_token_id=None
                        )
                        found = output[0, len(row) :].tolist()
                    elif turn % 3 == 1:
                        found = list(cached.stream(row, max_new_tokens=6, eos=()))
                    else:
                        cached.warm(row)
                        completion = cached.submit(row, max_new_tokens=6, eos=())
                        cached.engine.wait([completion])
                        found = completion.tokens
                    if found != new:
                        wrong.append((row, found, new))
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert not wrong
        assert loop.stop()
        assert_balanced(cached)


def test_closing_the_wrapper_ends_the_loop(model: PreTrainedModel) -> None:
    (row,) = prompts([20])
    cached = PrefixCachedModel(model, memory=1 << 20, chunk_tokens=CHUNK)
    loop = EngineLoop(cached.engine)
    loop.start()
    completion = cached.submit(row, max_new_tokens=400, eos=())
    cached.close()
    assert completion.done
    assert not loop.is_running


def test_generate_in_a_thread_gets_its_turns(model: PreTrainedModel) -> None:
    """The loop never pauses: a thread that waits for the lock gets it all the same."""
    long, row = prompts([20, 24])
    with wrapped(model, chunks=80) as cached:
        loop = EngineLoop(cached.engine)
        loop.start()
        endless = cached.submit(long, max_new_tokens=400, eos=())
        while not endless.tokens:
            time.sleep(0.001)
        output = cached.generate(torch.tensor([row]), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert not endless.done, "it did not have to wait for the other to end"
        assert output[0, len(row) :].tolist() == greedy(model, row, 8)
        loop.stop(drain=False)


def test_a_loop_serves_the_uncached_model_s_tokens(model: PreTrainedModel) -> None:
    rows = prompts([30, 40, 50, 60], shared=16)
    with wrapped(model) as cached:
        loop = EngineLoop(cached.engine)
        loop.start()
        completions = [cached.submit(row, max_new_tokens=8, eos=()) for row in rows]
        cached.engine.wait(completions)
        assert loop.stop()
        for completion in completions:
            assert_same(model, completion)
