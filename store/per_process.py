"""A value that each process makes for itself: what a fork must not share.

After `os.fork` a child has the parent's objects: sockets on which two processes would read each other's answers,
locks that a thread of the parent held at that moment, and threads that are not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """The value of this process. Thread-safe without a lock, which a fork might leave locked.

    Args:
        make: makes the value. In a child it gets the parent's, to read settings from; it must neither wait for
            nor change it. Where two threads of a child come first it may be called twice, and one value is dropped.
    """

    def __init__(self, make: Callable[[T | None], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {os.getpid(): make(None)}

    def get(self) -> T:
        """The value of this process, made at its first call."""
        pid = os.getpid()
        value = self._made.get(pid)
        if value is None:
            value = self._made.setdefault(pid, self._make(self._inherited(pid)))
            # The parent's value is not needed any more. What it consists of may close its descriptors here, in
            # this process; a connection stays open in the parent, which has descriptors of its own.
            for other in list(self._made):
                if other != pid:
                    self._made.pop(other, None)
        return value

    def _inherited(self, pid: int) -> T | None:
        return next((value for other, value in list(self._made.items()) if other != pid), None)
