"""Sequences that have left the engine, and the threads that hold them: rows of `generate`, and warmed prompts.

The engine preempts its own sequences for each other. It cannot preempt these: the thread that holds one closes it.
So a request that finds no room waits for them, unless no thread that holds any can continue.

An interrupt may lose a sequence: between the call that returns it and the assignment to a variable, or while its
holder waits for the lock to close it. The memory of a lost sequence is given back all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakMethod, ref

if TYPE_CHECKING:
    from kvtrie.api.engine.sequence_kv import Holding, SequenceKV


class HandedOver:
    """Sequences that are held outside the engine. Its users hold the engine's lock.

    Args:
        make_way: a method that frees slots for one of these sequences; False where nothing is left to free.
    """

    def __init__(self, make_way: Callable[[], bool]) -> None:
        # Weakly, as the engine owns this: see `Scheduler`.
        self._make_way = WeakMethod(make_way)
        self._holdings: dict[ref[SequenceKV], tuple[Holding, int]] = {}
        """Memory of each handed-over sequence, and the thread that holds the sequence."""
        self._lost: list[ref[SequenceKV]] = []
        """Sequences that no longer exist and were not closed."""

    def make_way(self) -> bool:
        """Frees slots for one of these sequences; False where nothing is left to free."""
        make_way = self._make_way()
        return make_way is not None and make_way()

    def add(self, sequence: SequenceKV, holding: Holding, thread: int) -> None:
        """Notes that `thread` holds a sequence, until `remove`."""
        # The callback is a method in C: one in Python could itself be interrupted, and the loss would go unnoticed.
        self._holdings[ref(sequence, self._lost.append)] = holding, thread

    def remove(self, sequence: SequenceKV) -> None:
        """Forgets a sequence that `add` noted."""
        del self._holdings[ref(sequence)]

    def close_lost(self) -> None:
        """Gives back the memory of lost sequences."""
        while self._lost:
            holding, _ = self._holdings.pop(self._lost.pop())
            holding.close()

    def threads(self) -> set[int]:
        """Threads that hold a sequence and are alive."""
        alive = {thread.ident for thread in threading.enumerate()}
        return {thread for _, thread in self._holdings.values() if thread in alive}
