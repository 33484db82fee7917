"""Memory for unfinished bodies, charged to the callers that send them."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

import anyio


class BudgetExceeded(Exception):
    """A caller's unfinished bodies would take more bytes than it may have at the moment."""


WAIT_SECONDS = 1.0
"""Time for which a body waits for room before it is refused; below a client's deadline."""


class ByteBudget:
    """`capacity_bytes` for all callers together. Called on the event loop only.

    One caller may hold half of what the others leave free: half of all when it is alone, a third beside one that
    does the same. So a caller that sends much, or never ends a body, always leaves room for the next one.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._held: Counter[str] = Counter()
        self._freed = anyio.Event()

    @property
    def longest_bytes(self) -> int:
        """Most bytes that one caller may ever hold."""
        return self.capacity_bytes // 2

    def charge(self, caller: str) -> Charge:
        """The account of one request, to be used in a `with`: at its end everything is given back."""
        return Charge(self, caller)

    def room_for(self, caller: str) -> int:
        """Bytes that `caller` may take in addition."""
        held = self._held[caller]
        return max(0, (self.capacity_bytes - (self.used_bytes - held)) // 2 - held)

    def book(self, caller: str, size_bytes: int) -> None:
        """Adds to, or with a negative size takes from, what `caller` holds."""
        self.used_bytes += size_bytes
        self._held[caller] += size_bytes
        if not self._held[caller]:
            del self._held[caller]
        if size_bytes < 0 and self._freed.statistics().tasks_waiting:
            self._freed.set()
            self._freed = anyio.Event()

    async def wait_for_room(self, caller: str, size_bytes: int) -> None:
        """Waits until there is room for `size_bytes` more, or `WAIT_SECONDS` are over."""
        with anyio.move_on_after(WAIT_SECONDS):
            while size_bytes > self.room_for(caller):
                await self._freed.wait()


class Charge:
    """Bytes that one request holds."""

    def __init__(self, budget: ByteBudget, caller: str) -> None:
        self._budget = budget
        self._caller = caller
        self.size_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Takes `size_bytes` more, after a wait where the caller may not hold so much at the moment.

        Unfinished bodies of one caller may all wait for each other. The first one that is refused ends that.

        Raises:
            BudgetExceeded: the caller may still not hold so much; nothing is taken.
        """
        if size_bytes > self._budget.room_for(self._caller):
            await self._budget.wait_for_room(self._caller, size_bytes)
            if size_bytes > self._budget.room_for(self._caller):
                raise BudgetExceeded
        self._book(size_bytes)

    def shrink_to(self, size_bytes: int) -> None:
        """Gives back all but `size_bytes`."""
        self._book(size_bytes - self.size_bytes)

    def _book(self, size_bytes: int) -> None:
        self._budget.book(self._caller, size_bytes)
        self.size_bytes += size_bytes

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shrink_to(0)
