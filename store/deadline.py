"""A deadline over a whole call, however many waits it is made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which a call must be over."""

    at_seconds: float
    """Reading of `time.monotonic` at that moment."""

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining_seconds(self) -> float:
        """Seconds left, more than zero.

        Raises:
            TimeoutError: there are none.
        """
        left = self.at_seconds - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline passed")
        return left


def run_within(deadline: Deadline, work: Callable[[], T], discard: Callable[[T], None]) -> T:
    """`work()`, waited for no longer than until `deadline`.

    For work that cannot be given a timeout, such as a name lookup inside `connect`. It runs in a daemon
    thread; past the deadline it is left behind, and `discard` gets its result if one ever comes.

    Raises:
        TimeoutError: the deadline passed first.
        Exception: whatever `work` raised.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # handed to the caller below, whatever it is
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
            return
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(result)
        else:
            discard(result)

    threading.Thread(target=run, name="kvtrie-connect", daemon=True).start()
    try:
        return outcome.result(deadline.remaining_seconds())
    except (FutureTimeoutError, TimeoutError):
        # cancel() fails only where `run` has begun to publish: then the outcome is there at once.
        if not outcome.cancel():
            return outcome.result()
        raise TimeoutError("deadline passed") from None
