"""Memory for sequences that have left the engine, rows of `generate`: they wait for what others will free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.held_interrupts import HeldInterrupts
from kvtrie.api.engine.scheduler import Scheduler
from kvtrie.api.engine.waits import Waits, wait_of_this_thread
from kvtrie.prefix_tree.errors import PoolExhausted

T = TypeVar("T")

_LOOK_SECONDS = 0.02
"""How often a thread looks whether others have freed memory."""


class RoomForRows:
    """Waits for memory. The engine's sequences have made way by then; what is left is held by other threads.

    Args:
        lock: the engine's.
        holders: sequences that have left the engine, and the threads that hold them.
        waits: calls that wait, by thread.
        scheduler: knows who can get on.
    """

    def __init__(
        self, lock: threading.RLock, holders: HandedOver, waits: Waits, scheduler: Scheduler
    ) -> None:
        self._lock = lock
        self._holders = holders
        self._waits = waits
        self._scheduler = scheduler

    def take(self, attempt: Callable[[], T], is_inside: bool) -> T:
        """Calls `attempt`, which takes memory, and returns its result.

        It is called under the lock, and again after it has raised `PoolExhausted` and others have freed memory, for
        as long as another thread holds some that it can free.

        Args:
            attempt: keeps what it got where it raises, or gives it back.
            is_inside: this thread holds the lock already, so that nobody else gets on meanwhile.

        Raises:
            PoolExhausted: `attempt` raised it, and nobody can free any.
        """
        waiting = wait_of_this_thread(None)
        while True:
            try:
                with self._lock:
                    try:
                        return attempt()
                    except PoolExhausted:
                        held = self._holders.held()
                        # Begun under the lock: of two that wait for each other, the second one sees the first.
                        self._waits.begin(waiting)
                        if is_inside or not self._scheduler.can_others_get_on():
                            raise
                while not self._has_room_come(held):
                    time.sleep(_LOOK_SECONDS)
            finally:
                self._waits.end(waiting)

    def _has_room_come(self, held: tuple[int, int]) -> bool:
        """Whether less is held than `held`, or nobody is left who could free any."""
        with self._lock, HeldInterrupts():
            self._holders.close_lost()
            is_less = any(now < then for now, then in zip(self._holders.held(), held))
            return is_less or not self._scheduler.can_others_get_on()
