"""Requests beside those that hold the memory outside the engine: they wait while somebody can free any."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import Completion, PrefixCachedModel, Request
from kvtrie.prefix_tree.errors import PoolExhausted
from tests.api.balance import CHUNK, assert_balanced, assert_same, greedy, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

CHUNKS = 12
HOLDING, ASKING = prompts([8 * CHUNK, 6 * CHUNK])
"""Together they do not fit; each alone does."""

SECONDS = 60.0
"""Until a test gives up. Nothing takes so long."""


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


@pytest.fixture
def cached(model: PreTrainedModel) -> Iterator[PrefixCachedModel]:
    with wrapped(model, chunks=CHUNKS) as wrapper:
        yield wrapper


class Worker:
    """A thread whose error is raised where it is joined."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    @property
    def is_at_it(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(SECONDS)
        assert not self.is_at_it, "a thread does not come back"
        if self._error is not None:
            raise self._error


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def generate(cached: PrefixCachedModel, row: list[int], new: int, at_each: Callable[[], object]) -> list[int]:
    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at_each()
        return scores

    output = cached.generate(
        torch.tensor([row]), max_new_tokens=new, do_sample=False, eos_token_id=None, logits_processor=[look]
    )
    found: list[int] = output[0, len(row) :].tolist()
    return found


@contextmanager
def generating(
    cached: PrefixCachedModel, row: list[int] = HOLDING, new: int = 4
) -> Iterator[threading.Event]:
    """`generate` in another thread, which holds the row's memory until the event is set or the block is left."""
    go_on, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(SECONDS)

    def work() -> None:
        assert generate(cached, row, new, hold) == greedy(cached.model, row, new)

    worker = Worker(work)
    try:
        until(begun.is_set)
        yield go_on
    finally:
        go_on.set()
        worker.join()


Drive = Callable[[PrefixCachedModel, Completion], None]

WAYS: dict[str, Drive] = {
    "wait": lambda cached, completion: cached.engine.wait([completion]),
    "run": lambda cached, completion: cached.engine.run(),
    "step": lambda cached, completion: step_until_done(cached, completion),
}


def step_until_done(cached: PrefixCachedModel, completion: Completion) -> None:
    while not completion.done:
        cached.engine.step()


@pytest.mark.parametrize("way", WAYS)
def test_a_request_waits_for_a_generate_in_another_thread(cached: PrefixCachedModel, way: str) -> None:
    with generating(cached) as go_on:
        completion = cached.submit(ASKING, max_new_tokens=4, eos=())
        driver = Worker(lambda: WAYS[way](cached, completion))
        until(lambda: completion.preemptions)
        time.sleep(0.2)
        assert driver.is_at_it
        assert not completion.done
        assert completion.preemptions == 1, "it is not tried again while nothing has become free"
        memory = cached.engine.memory
        assert len(memory.tree.leases) == 1, "who waits holds nothing"
        go_on.set()
        driver.join()
    assert_same(cached.model, completion)


def test_waiting_does_not_spin(cached: PrefixCachedModel) -> None:
    """The thread that is to free the memory gets the processor and the lock."""
    with generating(cached):
        completion = cached.submit(ASKING, max_new_tokens=4, eos=())
        driver = Worker(lambda: cached.engine.wait([completion]))
        until(lambda: completion.preemptions)
        began, used = time.monotonic(), time.process_time()
        time.sleep(0.5)
        used, passed = time.process_time() - used, time.monotonic() - began
        assert used < passed / 2
    driver.join()


def test_it_goes_on_as_soon_as_a_smaller_one_of_two_is_through(cached: PrefixCachedModel) -> None:
    with generating(cached, HOLDING[: 3 * CHUNK]), generating(cached, HOLDING[::-1][: 3 * CHUNK]) as go_on:
        completion = cached.submit(ASKING, max_new_tokens=4, eos=())
        driver = Worker(lambda: cached.engine.wait([completion]))
        until(lambda: completion.preemptions)
        go_on.set()
        driver.join()
        assert_same(cached.model, completion)


def test_warm_and_generate_wait_too(cached: PrefixCachedModel) -> None:
    expected = greedy(cached.model, ASKING, 3)
    with generating(cached):
        warming = Worker(lambda: cached.warm(ASKING))
        found: list[int] = []
        generating_too = Worker(lambda: found.extend(generate(cached, ASKING, 3, lambda: None)))
        until(lambda: cached.stats().get("preemptions"))
        assert warming.is_at_it
        assert generating_too.is_at_it
    warming.join()
    generating_too.join()
    assert found == expected


@pytest.mark.parametrize("way", WAYS)
def test_whoever_waits_for_itself_is_told_so(cached: PrefixCachedModel, way: str) -> None:
    """A logits processor that asks for more than its own `generate` leaves."""
    seen: list[Completion] = []

    def ask() -> None:
        if not seen:
            seen.append(cached.submit(ASKING, max_new_tokens=4, eos=()))
            WAYS[way](cached, seen[0])

    assert generate(cached, HOLDING, 3, ask) == greedy(cached.model, HOLDING, 3)
    with pytest.raises(PoolExhausted, match="the thread that asks holds the memory itself"):
        raise seen[0].error or AssertionError("served")
    completion = cached.submit(ASKING, max_new_tokens=4, eos=())
    cached.engine.run()
    assert_same(cached.model, completion)


@pytest.mark.parametrize("way", ["run", "wait"])
def test_whoever_waits_for_what_another_thread_asked_for(cached: PrefixCachedModel, way: str) -> None:
    """The holder waits for a request that is not its own, and nobody but the holder drives the engine."""
    seen: list[Completion] = []

    def ask() -> None:
        if not seen:
            Worker(lambda: seen.append(cached.submit(ASKING, max_new_tokens=4, eos=()))).join()
            WAYS[way](cached, seen[0])

    assert generate(cached, HOLDING, 3, ask) == greedy(cached.model, HOLDING, 3)
    assert isinstance(seen[0].error, PoolExhausted)
    completion = cached.submit(ASKING, max_new_tokens=4, eos=())
    cached.engine.run()
    assert_same(cached.model, completion)


def test_whoever_waits_for_itself_does_not_take_others_along(cached: PrefixCachedModel) -> None:
    """The other's request is older, and found no room first; the memory is freed in the end."""
    own: list[Completion] = []
    other: list[Completion] = []

    driver: list[Worker] = []

    def ask() -> None:
        if own:
            return
        ready = threading.Event()

        def serve() -> None:
            other.append(cached.submit(ASKING, max_new_tokens=4, eos=()))
            ready.set()
            cached.engine.wait(other)

        driver.append(Worker(serve))
        until(lambda: ready.is_set() and other[0].preemptions)
        own.append(cached.submit(ASKING[::-1], max_new_tokens=4, eos=()))
        cached.engine.wait(own)

    assert generate(cached, HOLDING, 3, ask) == greedy(cached.model, HOLDING, 3)
    driver[0].join()
    assert isinstance(own[0].error, PoolExhausted)
    assert_same(cached.model, other[0])


def test_two_batches_that_wait_for_each_other(model: PreTrainedModel) -> None:
    """Each holds a prompt and wants a second one: one of them fails, and the other one is served."""
    batches = [torch.tensor(prompts([5 * CHUNK] * 2, seed=seed)) for seed in (1, 2)]
    expected = [
        model.generate(batch, max_new_tokens=2, do_sample=False, eos_token_id=None) for batch in batches
    ]
    with wrapped(model, chunks=14) as cached:
        failed: list[int] = []

        def work(place: int) -> None:
            try:
                found = cached.generate(batches[place], max_new_tokens=2, do_sample=False, eos_token_id=None)
            except PoolExhausted:
                failed.append(place)
            else:
                assert torch.equal(found, expected[place])

        for _ in range(5):
            failed.clear()
            workers = [Worker(partial(work, place)) for place in (0, 1)]
            for worker in workers:
                worker.join()
            assert len(failed) <= 1
            assert_balanced(cached)


def test_nobody_frees_what_is_pinned(cached: PrefixCachedModel) -> None:
    warmed = cached.warm(HOLDING, pin=True)
    completion = cached.submit(ASKING, max_new_tokens=4, eos=())
    cached.engine.run()
    with pytest.raises(PoolExhausted, match="unpin, or raise memory="):
        raise completion.error or AssertionError("served")
    assert warmed.pin is not None
    cached.unpin(warmed.pin)


def test_a_pin_that_is_ended_meanwhile_is_enough(cached: PrefixCachedModel) -> None:
    """Whatever frees memory: the holder that could have need not be the one that does."""
    warmed = cached.warm(HOLDING[: 5 * CHUNK], pin=True)
    assert warmed.pin is not None
    with generating(cached, ASKING[: 2 * CHUNK]):
        completion = cached.submit(ASKING[::-1], max_new_tokens=4, eos=())
        driver = Worker(lambda: cached.engine.wait([completion]))
        until(lambda: completion.preemptions)
        cached.unpin(warmed.pin)
        driver.join()
        assert_same(cached.model, completion)


def test_a_thread_that_has_ended_frees_nothing(cached: PrefixCachedModel) -> None:
    root, held = cached._roots(None)[0], []

    def prefill() -> None:
        held.append(cached.engine.submit(Request(HOLDING, root, max_new_tokens=0, prefill_only=True)))
        cached.engine.wait(held)

    Worker(prefill).join()
    completion = cached.submit(ASKING, max_new_tokens=4, eos=())
    cached.engine.run()
    assert isinstance(completion.error, PoolExhausted)
    cached.engine.discard(held)


def test_a_cancelled_request_waits_no_longer(cached: PrefixCachedModel) -> None:
    with generating(cached):
        completion = cached.submit(ASKING, max_new_tokens=4, eos=())
        driver = Worker(lambda: cached.engine.wait([completion]))
        until(lambda: completion.preemptions)
        completion.cancel()
        driver.join()
        assert completion.finish_reason == "cancelled"


def test_under_the_engine_s_lock_nobody_can_free_any(cached: PrefixCachedModel) -> None:
    with generating(cached):
        completion = cached.submit(ASKING, max_new_tokens=4, eos=())
        with cached.engine.lock:
            cached.engine.run()
        assert isinstance(completion.error, PoolExhausted)


def test_requests_make_way_for_rows_of_generate(cached: PrefixCachedModel) -> None:
    """Rows cannot wait for slots; a request that has begun can. Nobody steps while the rows go on."""
    completion = cached.submit(ASKING, max_new_tokens=4 * CHUNK, eos=())
    slots = cached.engine.memory.pool.free_slots

    def fill() -> None:
        while slots.free and not completion.preemptions:
            cached.engine.step()

    row = HOLDING[: 3 * CHUNK - 2]
    assert generate(cached, row, 8 * CHUNK, fill) == greedy(cached.model, row, 8 * CHUNK)
    assert completion.preemptions == 1
    cached.engine.run()
    assert_same(cached.model, completion)
