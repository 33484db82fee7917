"""KV that has left the engine, and who holds it: rows of `generate` calls, and prompts computed ahead.

The engine's own sequences make way for each other. These do not: they are given back when their holder is through.
So a request that finds no room waits for them, unless no thread that holds any can get on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrie.api.engine.sequence_kv import SequenceKV


class HandedOver:
    """Sequences that are held outside the engine. Its users hold the engine's lock.

    Args:
        make_way: frees slots for one of these sequences; False where nothing is left to free.
    """

    def __init__(self, make_way: Callable[[], bool]) -> None:
        self.make_way = make_way
        self._threads: dict[SequenceKV, int] = {}

    def add(self, sequence: SequenceKV, thread: int) -> None:
        """Notes that `thread` holds a sequence; `SequenceKV.close` takes the note back."""
        self._threads[sequence] = thread

    def remove(self, sequence: SequenceKV) -> None:
        """Takes back what `add` noted."""
        del self._threads[sequence]

    def threads(self) -> set[int]:
        """Threads that hold a sequence and are alive."""
        return {thread.ident for thread in threading.enumerate() if thread.ident is not None}.intersection(
            self._threads.values()
        )
