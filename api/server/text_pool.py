"""Threads for parsing, rendering and tokenizing, whose time grows with the text: the event loop does none of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

T = TypeVar("T")


class TextPool:
    """At most so many threads at once; further work waits for its turn.

    Args:
        threads: None for as many as the machine has cores, and at least two.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._limit = anyio.CapacityLimiter(threads or max(2, os.cpu_count() or 2))

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, or what it raises. Once begun it runs to its end, still wanted or not."""
        return await run_sync(work, limiter=self._limit)
