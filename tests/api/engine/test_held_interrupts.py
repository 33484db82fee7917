"""Signals that come during bookkeeping are handled after it, by the handlers that were there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from kvtrie.api.engine.held_interrupts import HeldInterrupts


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts the handlers of this file's signals back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGALRM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def hit(signum: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), signum)


def test_an_interrupt_comes_at_the_end() -> None:
    reached = []

    def block() -> None:
        with HeldInterrupts():
            hit()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_none_comes_where_none_was_sent() -> None:
    with HeldInterrupts() as held:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert held.raised is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_the_interrupt_s_context() -> None:
    def block() -> None:
        with HeldInterrupts():
            hit()
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as caught:
        block()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_lifted_lets_what_was_due_through_at_once() -> None:
    reached = []
    held = HeldInterrupts()

    def block() -> None:
        with held:
            hit()
            reached.append("before")
            with held.lifted():
                reached.append("inside")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["before"]
    assert isinstance(held.raised, KeyboardInterrupt)


def test_lifted_lets_what_comes_through() -> None:
    reached = []
    held = HeldInterrupts()

    def block() -> None:
        with held:
            with held.lifted():
                reached.append("inside")
                hit()
                reached.append("after the signal")
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["inside"]
    assert isinstance(held.raised, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_holds_again_after_lifted() -> None:
    reached = []
    held = HeldInterrupts()

    def block() -> None:
        with held:
            with held.lifted():
                pass
            hit()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["the end"]


def test_inside_another_one_the_outer_one_holds() -> None:
    reached = []

    def block() -> None:
        with HeldInterrupts():
            with HeldInterrupts() as inner:
                hit()
                reached.append("inner")
                with inner.lifted():
                    reached.append("lifted")
            reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == ["inner", "lifted", "outer"]


def test_every_handler_runs_and_each_once() -> None:
    calls: list[int] = []

    def raising(signum: int, frame: FrameType | None) -> None:
        calls.append(signum)
        raise TimeoutError(str(signum))

    for signum in (signal.SIGALRM, signal.SIGUSR1):
        signal.signal(signum, raising)

    def block() -> None:
        with HeldInterrupts():
            hit(signal.SIGALRM)
            hit(signal.SIGUSR1)
            hit(signal.SIGALRM)

    with pytest.raises(TimeoutError) as caught:
        block()
    assert sorted(calls) == [signal.SIGUSR1, signal.SIGALRM]
    assert isinstance(caught.value.__context__, TimeoutError), "the first one is not lost"
    for signum in (signal.SIGALRM, signal.SIGUSR1):
        assert signal.getsignal(signum) is raising


def test_signals_without_a_python_handler_are_left_alone() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with HeldInterrupts():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        hit(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_in_another_thread_it_does_nothing() -> None:
    seen = []

    def look() -> None:
        with HeldInterrupts() as held, held.lifted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
