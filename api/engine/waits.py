"""Which threads wait for requests of an engine, and so cannot free the memory that they hold."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from kvtrie.api.engine.request import Completion


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """A call that waits."""

    thread: int
    completions: list[Completion] | None
    """Requests that it waits for; None for all."""

    @property
    def is_on(self) -> bool:
        """Whether one of them is not done."""
        return self.completions is None or not all(completion.done for completion in self.completions)


class Waits:
    """Calls that wait, of all threads. Thread-safe without a lock: each change is one operation on a list."""

    def __init__(self) -> None:
        self._under_way: list[Wait] = []

    def begin(self, wait: Wait) -> None:
        """Notes a call, until `end`."""
        self._under_way.append(wait)

    def end(self, wait: Wait) -> None:
        """Forgets a call that `begin` noted, if it was noted: an interrupt may have come before."""
        if wait in self._under_way:
            self._under_way.remove(wait)

    def is_waiting(self, thread: int) -> bool:
        """Whether a call of this thread waits for a request that is not done."""
        return any(wait.thread == thread and wait.is_on for wait in list(self._under_way))


def wait_of_this_thread(completions: list[Completion] | None) -> Wait:
    """A call of the current thread that waits for these; None for everything."""
    return Wait(threading.get_ident(), completions)
