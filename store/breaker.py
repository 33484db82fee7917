"""A circuit breaker: after a failure, calls are refused at once for a while instead of waiting in turn."""

from __future__ import annotations

import threading
import time

from kvtrie.prefix_tree.errors import InputError


class CircuitBreaker:
    """Closed until a call fails; then open for `retry_after_seconds`, doubling up to `longest_seconds`.

    When the time is over one call may try, alone: with a hung server every other one would wait for its
    whole deadline too. Its success closes the breaker, its failure opens it for longer.

    Raises:
        InputError: times that are not `0 < retry_after_seconds <= longest_seconds`.
    """

    def __init__(self, *, retry_after_seconds: float, longest_seconds: float) -> None:
        if not 0 < retry_after_seconds <= longest_seconds:
            raise InputError(
                f"retry_after_seconds must be above 0 and at most {longest_seconds}, "
                f"got {retry_after_seconds}"
            )
        self._retry_after_seconds = retry_after_seconds
        self._longest_seconds = longest_seconds
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        # Calls that began before the last failure must not count again: their number is the traffic's,
        # not the outage's. A ticket is the number of failures seen when the call began.
        self._ticket = 0

    def wait_seconds(self) -> float:
        """Seconds until `enter` may let a call through, 0 where it would now. Claims nothing."""
        with self._lock:
            return max(0.0, self._open_until - time.monotonic()) if self._failures else 0.0

    def enter(self, probe_seconds: float) -> int | None:
        """A ticket for one call, or None where it is refused.

        `probe_seconds` is how long the call may take: as long are others refused if it is the one that tries.
        """
        with self._lock:
            if self._failures:
                now = time.monotonic()
                if now < self._open_until:
                    return None
                self._open_until = now + probe_seconds
            return self._ticket

    def succeeded(self, ticket: int) -> None:
        """The call with `ticket` went through."""
        with self._lock:
            if ticket == self._ticket:
                self._failures = 0

    def failed(self, ticket: int) -> None:
        """The call with `ticket` failed."""
        with self._lock:
            if ticket != self._ticket:
                return
            self._ticket += 1
            # The exponent is bounded: 2.0 ** 1024 is an OverflowError after a long outage.
            pause = self._retry_after_seconds * 2.0 ** min(self._failures, 60)
            self._failures += 1
            self._open_until = time.monotonic() + min(pause, self._longest_seconds)
