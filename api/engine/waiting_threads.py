"""Which thread waits for which requests: a thread that waits for the engine cannot give memory back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kvtrie.api.engine.request import Completion, Job


class WaitingThreads:
    """Calls of `wait` and `run` under way, by thread."""

    def __init__(self) -> None:
        self._waits: dict[int, list[list[Completion] | None]] = {}
        """What each thread's calls wait for; None for everything."""

    @contextmanager
    def waiting_for(self, completions: list[Completion] | None) -> Iterator[None]:
        """Notes that this thread waits for these, or for all, until the block ends."""
        thread = threading.get_ident()
        waits = self._waits.setdefault(thread, [])
        depth = len(waits)
        try:
            waits.append(completions)
            yield
        finally:
            # Not `pop`: an interrupt may have come before the entry.
            del waits[depth:]
            if not waits:
                self._waits.pop(thread, None)

    def is_stuck(self, thread: int, jobs: Iterable[Job]) -> bool:
        """Whether a thread waits for requests that are not done; `jobs` are those under way."""
        for completions in self._waits.get(thread, ()):
            if completions is None or not all(completion.done for completion in completions):
                return True
        # By steps of its own: `stream` does, and knows nothing to do between them.
        return thread == threading.get_ident() and any(job.completion.thread == thread for job in jobs)
