"""Hearing of tokens and outcomes: callbacks, `wait`, and `async for`."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest

from bench.faked_engine import TOKEN, Faked
from kvtrie.api import Completion
from kvtrie.api.engine.loop import EngineLoop

SECONDS = 60.0


def test_callbacks_hear_of_each_token_and_of_the_outcome_once() -> None:
    faked = Faked()
    heard: list[Any] = []
    completion = faked.submit(20, 3)
    completion.add_done_callback(lambda c: heard.append((c, c.finish_reason)))
    completion.add_token_callback(heard.append)
    faked.run()
    assert heard == [[TOKEN], [TOKEN], [TOKEN], (completion, "length")]


def test_callbacks_that_come_late_hear_of_all_there_is() -> None:
    faked = Faked()
    completion = faked.submit(20, 4)
    faked.step(2)
    halfway: list[list[int]] = []
    completion.add_token_callback(halfway.append)
    faked.run()
    assert halfway == [[TOKEN] * 3, [TOKEN]]
    heard: list[Any] = []
    completion.add_token_callback(heard.append)
    completion.add_done_callback(heard.append)
    assert heard == [[TOKEN] * 4, completion]


def test_a_callback_that_is_taken_back_hears_nothing() -> None:
    faked = Faked()
    completion = faked.submit(20, 2)
    heard: list[Any] = []
    completion.discard_token_callback(completion.add_token_callback(heard.append))
    faked.run()
    assert heard == []


def test_what_a_callback_raises_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    faked = Faked()
    heard: list[Completion] = []

    def fail(_: object) -> None:
        raise RuntimeError("not my day")

    completion, other = faked.submit(20, 2), faked.submit(20, 2)
    completion.add_token_callback(fail)
    completion.add_done_callback(fail)
    completion.add_done_callback(heard.append)
    with caplog.at_level(logging.ERROR):
        faked.run()
    assert (completion.finish_reason, other.finish_reason) == ("length", "length")
    assert heard == [completion]
    assert caplog.text.count("not my day") >= 3
    faked.assert_balanced()


def test_a_callback_may_submit_and_cancel() -> None:
    faked = Faked()
    made: list[Completion] = []
    first, second = faked.submit(20, 2), faked.submit(20, 50)

    def go_on(_: Completion) -> None:
        made.append(faked.submit(20, 3))
        second.cancel()

    first.add_done_callback(go_on)
    faked.run()
    assert made[0].finish_reason == "length"
    assert second.finish_reason == "cancelled"


def test_wait_makes_no_steps_and_says_whether_it_is_done() -> None:
    faked = Faked()
    completion = faked.submit(20)
    assert not completion.wait(0.01)
    assert not faked.steps.rows
    stepping = threading.Thread(target=faked.engine.run)
    stepping.start()
    assert completion.wait(SECONDS)
    stepping.join(SECONDS)
    assert completion.wait(0)


def test_callbacks_are_called_once_whoever_is_faster() -> None:
    """Added by one thread while another one steps, thousands of times."""
    faked = Faked(check=False)
    loop = EngineLoop(faked.engine)
    loop.start()
    counts: list[list[int]] = []
    done = []
    for _ in range(300):
        completion = faked.submit(5, 2)
        tokens: list[int] = []
        completion.add_token_callback(tokens.extend)
        completion.add_done_callback(done.append)
        counts.append(tokens)
    assert loop.stop(timeout=SECONDS)
    assert counts == [[TOKEN, TOKEN]] * 300
    assert len(done) == len(set(done)) == 300


# ---- asyncio


@pytest.fixture
def faked() -> Any:
    made = Faked(check=False)
    loop = EngineLoop(made.engine)
    loop.start()
    yield made
    loop.stop(drain=False)
    made.assert_balanced()


def test_async_for_yields_the_tokens_and_ends(faked: Faked) -> None:
    async def ask(new: int) -> list[int]:
        return [token async for token in faked.submit(20, new)]

    async def ask_many() -> list[list[int]]:
        return await asyncio.gather(*[ask(new) for new in range(1, 30)])

    assert asyncio.run(ask_many()) == [[TOKEN] * new for new in range(1, 30)]


def test_async_for_over_what_is_done_already(faked: Faked) -> None:
    completion = faked.submit(20, 3)
    assert completion.wait(SECONDS)

    async def read() -> list[int]:
        return [token async for token in completion]

    assert asyncio.run(read()) == asyncio.run(read()) == [TOKEN] * 3


def test_async_for_raises_the_request_s_error(faked: Faked) -> None:
    seen = 0

    async def ask() -> None:
        nonlocal seen
        async for _ in faked.submit(20, 1000):
            seen += 1
            if seen == 2:
                faked.steps.at_step = fail

    def fail() -> None:
        raise RuntimeError("a broken layer")

    with pytest.raises(RuntimeError, match="a broken layer"):
        asyncio.run(ask())
    assert seen >= 2


def test_a_loop_that_is_left_cancels_the_request(faked: Faked) -> None:
    async def ask() -> Completion:
        completion = faked.submit(20, 10_000)
        async for _ in completion:
            break
        gc.collect()
        return completion

    completion = asyncio.run(ask())
    assert completion.wait(SECONDS)
    assert completion.finish_reason == "cancelled"


def test_a_task_that_is_cancelled_cancels_the_request(faked: Faked) -> None:
    async def read(completion: Completion) -> None:
        async for _ in completion:
            pass

    async def ask() -> Completion:
        completion = faked.submit(20, 10_000)
        task = asyncio.create_task(read(completion))
        while not completion.tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return completion

    completion = asyncio.run(ask())
    assert completion.wait(SECONDS)
    assert completion.finish_reason == "cancelled"


def test_aclose_cancels_and_a_second_iterator_does_not_disturb_the_first(faked: Faked) -> None:
    async def ask() -> tuple[list[int], list[int]]:
        completion = faked.submit(20, 20)

        async def read() -> list[int]:
            return [token async for token in completion]

        both = await asyncio.gather(read(), read())
        left = faked.submit(20, 10_000)
        tokens = aiter_of(left)
        assert await tokens.__anext__() == TOKEN
        await tokens.aclose()
        while not left.done:
            await asyncio.sleep(0.001)
        assert left.finish_reason == "cancelled"
        return both[0], both[1]

    assert asyncio.run(ask()) == ([TOKEN] * 20, [TOKEN] * 20)


def aiter_of(completion: Completion) -> Any:
    return completion.__aiter__()


def test_without_a_running_event_loop_there_is_no_iterator(faked: Faked) -> None:
    completion = faked.submit(20, 2)
    with pytest.raises(RuntimeError, match="no running event loop"):
        completion.__aiter__()
    assert completion.wait(SECONDS)
    assert completion.finish_reason == "length", "nothing was cancelled"
