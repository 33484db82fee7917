"""Telling others that a completion has new tokens, or an outcome. Each is told once, whichever thread is faster.

Callbacks run in the thread that steps, which holds the engine's lock: they must be quick, and must not wait for
another request. What they raise is logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

_LOG = logging.getLogger(__name__)


class OnceCallbacks:
    """Functions that are called once each, at an event that comes once: those added later are called at once.

    Thread-safe without a lock: whoever takes a function out of the deque calls it, and taking out is atomic.
    """

    def __init__(self) -> None:
        self._functions: deque[Callable[[], object]] = deque()
        self.has_come = False
        """Whether the event has come."""

    def add(self, function: Callable[[], object]) -> None:
        """Adds a function."""
        self._functions.append(function)
        if self.has_come:
            self.call()

    def discard(self, function: Callable[[], object]) -> None:
        """Takes a function back, unless it is being called."""
        try:
            self._functions.remove(function)
        except (ValueError, IndexError):
            # Called meanwhile, or others were.
            return

    def call(self) -> None:
        """The event has come."""
        self.has_come = True
        while True:
            try:
                function = self._functions.popleft()
            except IndexError:
                return
            try:
                function()
            except Exception:
                _LOG.exception("a callback failed")


class TokenCallback:
    """A function that gets a completion's tokens as they come, each once and in order."""

    def __init__(self, function: Callable[[list[int]], object], tokens: Sequence[int]) -> None:
        self._function = function
        self._tokens = tokens
        self._seen = 0
        # The thread that steps and the one that adds the callback may both come.
        self._lock = threading.RLock()

    def call(self) -> None:
        """Passes on what is new."""
        with self._lock:
            fresh = list(self._tokens[self._seen :])
            if not fresh:
                return
            self._seen += len(fresh)
            try:
                self._function(fresh)
            except Exception:
                _LOG.exception("a token callback failed")
