"""Real signals at any moment of an engine's work: nothing is lost, and the engine goes on."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import Completion, EngineConfig, PrefixCachedModel
from kvtrie.api.tiers.store_tier import StoreTier
from tests.api.balance import CHUNK, assert_balanced, assert_same, chunk_bytes, wrapped
from tests.api.lower_tiers import KeptStore, small_model
from tests.api.tiny_models import prompts

ROWS = [*prompts([3 * CHUNK + 3, 3 * CHUNK + 9, 20], shared=2 * CHUNK), *prompts([4 * CHUNK], seed=2)]
NEW = CHUNK + 3
PACKAGE = str(Path(__file__).parents[3])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for signum, handler in before.items():
        signal.signal(signum, handler)


class Interrupts:
    """A handler that raises only while `serve` is inside `run`: a test that is hit elsewhere proves nothing."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self._is_inside = False
        self.raised = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self._is_inside:
            # Before the error: a second signal may come before anybody can catch the first one's.
            self._is_inside = False
            self.raised += 1
            raise self._error

    def serve(
        self, cached: PrefixCachedModel, rows: list[list[int]] = ROWS, new: int = NEW
    ) -> list[Completion]:
        """Serves the rows, calling `run` again after each interrupt."""
        completions = [cached.submit(row, max_new_tokens=new, eos=()) for row in rows]
        while not all(completion.done for completion in completions):
            try:
                self._is_inside = True
                cached.engine.run()
                self._is_inside = False
            except self._error:
                cached.check()
        return completions


def test_sigint_in_a_pass_ends_run_and_no_request(model: PreTrainedModel) -> None:
    left = 0

    def interrupt(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    hook = model.model.layers[0].register_forward_pre_hook(interrupt)
    try:
        with wrapped(model, engine=EngineConfig(step_tokens=CHUNK)) as cached:
            completion = cached.submit(ROWS[0], max_new_tokens=NEW, eos=())
            for passes in (3, 1, 2):
                left = passes
                with pytest.raises(KeyboardInterrupt):
                    cached.engine.run()
                assert not completion.done
                cached.check()
                other = threading.Thread(target=cached.stats)
                other.start()
                other.join(30)
                assert not other.is_alive(), "the lock is still held"
            cached.engine.run()
            assert_same(model, completion)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["__enter__", "__exit__"])
def test_sigint_as_inference_mode_begins_or_ends(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The mode is not left on, and no later garbage collection ends it in the middle of a pass."""
    plain = getattr(torch.inference_mode, name)
    sent = 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal sent
        if name == "__enter__":
            plain(self, *arguments)
        if sent == 0:
            sent += 1
            os.kill(os.getpid(), signal.SIGINT)
            # The handler runs between two lines of Python.
            assert sent == 1
        if name == "__exit__":
            plain(self, *arguments)

    with wrapped(model) as cached:
        completion = cached.submit(ROWS[0], max_new_tokens=NEW, eos=())
        monkeypatch.setattr(torch.inference_mode, name, interrupted)
        # The traceback, and with it every frame, is still held when the mode is asked for.
        with pytest.raises(KeyboardInterrupt) as caught:
            cached.engine.run()
        assert sent == 1 and caught.value.__traceback__ is not None
        assert not torch.is_inference_mode_enabled()
        monkeypatch.undo()
        cached.engine.run()
        assert_same(model, completion)


def test_an_alarm_s_exception_is_not_taken_for_the_model_s(model: PreTrainedModel) -> None:
    """Programs limit a call's time with an alarm whose handler raises an ordinary exception."""
    interrupts, passes = Interrupts(TimeoutError), 0

    def ring(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes % 3 == 0:
            signal.raise_signal(signal.SIGALRM)

    signal.signal(signal.SIGALRM, interrupts)
    hook = model.model.layers[0].register_forward_pre_hook(ring)
    try:
        with wrapped(model) as cached:
            for completion in interrupts.serve(cached):
                assert_same(model, completion)
    finally:
        hook.remove()
    assert interrupts.raised >= NEW // 3


class AtLine:
    """A trace function that sends SIGALRM before the n-th line of this package's own code."""

    def __init__(self, line: int) -> None:
        self._line = line
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> AtLine | None:
        if event == "call":
            return self if frame.f_code.co_filename.startswith(PACKAGE) else None
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                signal.raise_signal(signal.SIGALRM)
        return self


@pytest.mark.parametrize("seed", [1, 2])
def test_an_interrupt_at_any_line(model: PreTrainedModel, seed: int) -> None:
    interrupts, chance = Interrupts(KeyboardInterrupt), random.Random(seed)
    signal.signal(signal.SIGALRM, interrupts)

    def serve(line: int) -> AtLine:
        """Serves two requests that share a prefix, new to the cache, in a pool that holds hardly more than one."""
        trace = AtLine(line)
        rows = prompts([2 * CHUNK + 3, 2 * CHUNK + 5], shared=2 * CHUNK, seed=line)
        sys.settrace(trace)
        try:
            served = interrupts.serve(cached, rows, CHUNK)
        finally:
            sys.settrace(None)
        for completion in served:
            assert_same(model, completion)
        assert_balanced(cached)
        return trace

    with PrefixCachedModel(
        model,
        memory=6 * chunk_bytes(model),
        chunk_tokens=CHUNK,
        store=StoreTier(KeptStore()),
        engine=EngineConfig(step_tokens=20),
    ) as cached:
        lines = serve(-1).lines
        for _ in range(60):
            serve(chance.randrange(lines))
    assert interrupts.raised > 50


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_alarm_at_any_moment(model: PreTrainedModel, seed: int) -> None:
    interrupts, chance = Interrupts(KeyboardInterrupt), random.Random(seed)
    signal.signal(signal.SIGALRM, interrupts)
    done = threading.Event()

    def ring() -> None:
        while not done.is_set():
            time.sleep(chance.uniform(0.001, 0.01))
            os.kill(os.getpid(), signal.SIGALRM)

    ringing = threading.Thread(target=ring)
    ringing.start()
    try:
        with wrapped(
            model, chunks=14, store=StoreTier(KeptStore()), engine=EngineConfig(step_tokens=20)
        ) as cached:
            served = [completion for _ in range(6) for completion in interrupts.serve(cached)]
            assert_balanced(cached)
    finally:
        done.set()
        ringing.join()
    for completion in served:
        assert_same(model, completion)
    assert interrupts.raised > 10
