"""What other threads leave for the engine: new requests, cancels and aborts. The next step takes them in.

Leaving something waits for nothing: it is one operation on a deque, which is atomic in CPython, with the GIL and
without. So `submit` takes microseconds however long the step under way is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvtrie.api.engine.request import Completion, Job


class Inbox:
    """Filled in any thread, and emptied under the engine's lock."""

    def __init__(self) -> None:
        self._arrived: deque[Job] = deque()
        self._tokens = 0
        self.cancelled: deque[Completion] = deque()
        """Completions whose `cancel` was called."""
        self.aborted: deque[str] = deque()
        """Ids of requests to abort."""

    def __len__(self) -> int:
        """Requests that have arrived and are not taken in."""
        return len(self._arrived)

    @property
    def tokens(self) -> int:
        """`Job.weight_tokens` of these.

        Threads that submit at the same moment may each overlook the other. That is put right whenever the inbox is
        emptied, and a limit is exceeded by no more than what these threads submit.
        """
        return self._tokens

    def put(self, job: Job) -> None:
        """Leaves a request."""
        self._arrived.append(job)
        self._tokens += job.weight_tokens

    def take_in(self, add: Callable[[Job], None]) -> None:
        """Calls `add` with each request that has arrived, in order. It is here until `add` has returned."""
        while self._arrived:
            add(self._arrived[0])
            self._arrived.popleft()
        self._tokens = sum(job.weight_tokens for job in self._arrived.copy())
