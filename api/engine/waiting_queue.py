"""Which waiting request is admitted next: the contract, and the plain order of arrival.

`FairQueue` in `fair_queue.py` is the engine's default.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Protocol

from kvtrie.api.engine.request import Job


class WaitingQueue(Protocol):
    """Jobs that may be admitted. Not thread-safe: its owner holds the engine's lock.

        put ---------> waiting --taken--> admitted
         ^                |                  |
         |    set_aside / remove             |
         +--- (set aside) |      put_back <--+   (preempted)

    A job has a `scope`, a `priority` and a `number`, which counts arrivals.
    """

    def put(self, job: Job) -> None:
        """Adds a job that has arrived, or that was set aside: it has the place that its number gives it."""
        ...

    def put_back(self, job: Job) -> None:
        """Adds a job that was admitted and has been preempted: before all others, and free of charge."""
        ...

    def first(self, passing_over: Collection[str] = ()) -> Job | None:
        """The job to admit next, those of some scopes left out; None where there is none.

        The same one until the queue changes.
        """
        ...

    def taken(self, job: Job, tokens: int) -> None:
        """Takes out a job that is admitted.

        Args:
            job: as `first` returned it.
            tokens: what it costs: tokens of its prompt that are not cached, and all tokens that it may produce.
        """
        ...

    def set_aside(self, job: Job) -> None:
        """Takes out a job that cannot be admitted yet. Another scope comes next, if any waits."""
        ...

    def remove(self, job: Job) -> None:
        """Takes out a job that has ended."""
        ...

    @property
    def scopes(self) -> Collection[str]:
        """Scopes of the jobs here."""
        ...

    @property
    def tokens(self) -> int:
        """`Job.weight_tokens` of all jobs here."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Job]: ...


class FifoQueue:
    """Jobs in their order of arrival, whatever their scope and priority."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self.tokens = 0
        """See `WaitingQueue`."""

    def put(self, job: Job) -> None:
        """See `WaitingQueue`. O(jobs that arrived later)."""
        place = len(self._jobs)
        while place and self._jobs[place - 1].number > job.number:
            place -= 1
        self._jobs.insert(place, job)
        self.tokens += job.weight_tokens

    def put_back(self, job: Job) -> None:
        """See `WaitingQueue`."""
        self._jobs.appendleft(job)
        self.tokens += job.weight_tokens

    def first(self, passing_over: Collection[str] = ()) -> Job | None:
        """See `WaitingQueue`. Nobody is let past the first one, whose scope may be passed over or not."""
        return self._jobs[0] if self._jobs and not passing_over else None

    def taken(self, job: Job, tokens: int) -> None:
        """See `WaitingQueue`."""
        self.remove(job)

    def set_aside(self, job: Job) -> None:
        """See `WaitingQueue`."""
        self.remove(job)

    def remove(self, job: Job) -> None:
        """See `WaitingQueue`."""
        self._jobs.remove(job)
        self.tokens -= job.weight_tokens

    @property
    def scopes(self) -> Collection[str]:
        """See `WaitingQueue`."""
        return {job.scope for job in self._jobs}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)
