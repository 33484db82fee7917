"""Who takes part in a step: jobs that wait, jobs that run, and who makes way when memory is short.

Nothing is computed here. The engine calls, in this order within a step:

    add           a job that has arrived: it waits
    is_starving   all wait for memory that others hold: nobody is admitted
    admit         waiting -> running: match, load, lease, claim
    gather        the step's batch, with room reserved for its rows; the youngest jobs make way for the others

and `remove` whenever a job ends. A job that waits is in the queue, or parked where another one computes chunks that
it needs, too.

Admission takes the queue's first job as long as there is a seat (`max_running`) and its chunks fit beside those
that others are sure to need (`admission.py`). One that does not fit is not overtaken. Jobs of scopes that have less
than an equal share of seats and chunks come before those of other scopes; and where a scope has more than its
share, its youngest sequences are preempted for a job that is within its own scope's (`shares.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum
from weakref import WeakMethod

from sortedcontainers import SortedDict

from kvtrie.api.engine.admission import Needs, Room
from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.load_missing import load_missing
from kvtrie.api.engine.memory_waits import MemoryWaits
from kvtrie.api.engine.parking import Parking
from kvtrie.api.engine.prefill_rows import Prefill, prefill_rows
from kvtrie.api.engine.request import Completion, Job
from kvtrie.api.engine.sequence_kv import open_sequence
from kvtrie.api.engine.shares import Shares, youngest_of
from kvtrie.api.engine.step_runner import StepRunner
from kvtrie.api.engine.waiting_queue import WaitingQueue
from kvtrie.prefix_tree import Match
from kvtrie.prefix_tree.keys import TOKEN_BYTES

_MOST_PARKED = 32
"""Jobs that one step may look at only to find that they have to wait for another one: a look takes a match."""

_LOG = logging.getLogger(__name__)

End = Callable[[Job, str, Exception | None], None]
"""A method that ends a job: with a finish reason, and with the error that ended it."""


class _Try(Enum):
    """What came of trying to admit a job."""

    DONE = "it runs, or has ended"
    PARKED = "it waits for another job's chunks"
    NO_ROOM = "it stays first in the queue"
    AGAIN = "others were preempted for it"


class Scheduler:
    """Jobs under way. Its owner holds the engine's lock.

    Args:
        memory: where KV is.
        config: limits of a step.
        queue: decides which job is admitted next.
        steps: reserves room ahead where decode steps are captured.
        holders: sequences that left the engine, and the threads that hold them.
        memory_waits: who can free memory that a job finds no room in.
        end: ends a job that cannot go on, and calls `remove`.
    """

    def __init__(
        self,
        memory: KvMemory,
        config: EngineConfig,
        queue: WaitingQueue,
        steps: StepRunner,
        holders: HandedOver,
        memory_waits: MemoryWaits,
        end: End,
    ) -> None:
        self._memory = memory
        self._config = config
        self._queue = queue
        self._steps = steps
        self._holders = holders
        self.memory_waits = memory_waits
        # Weakly, as the engine owns this: in a cycle, a closed wrapper's pool would outlive it for a while.
        self._end_of_owner = WeakMethod(end)
        self._jobs: dict[Completion, Job] = {}
        """All that are under way, in their order of arrival."""
        self._parking = Parking()
        self._deadlines: SortedDict = SortedDict()
        """Jobs by the time when they expire, and their number."""
        self.running: list[Job] = []
        """In the order of their admission: the last one is preempted first."""
        self.needs = Needs(memory)
        self._room: Room | None = None
        """What may be promised now; None where that is to be found out."""
        self._turn = 0
        """Counts steps."""
        self._most_running: int | None = None
        """Sequences that run at once since memory ran out, until as many have ended well."""
        self._ended_well = 0
        self._starved: Job | None = None
        """Found no room even alone: nobody is admitted until what others hold has become less."""
        self._held_then = (0, 0)
        """What was held when that job found no room."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are under way."""
        return tuple(self._jobs.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or running."""
        return not self._jobs

    @property
    def waiting(self) -> int:
        """How many jobs wait. May be asked for in any thread."""
        return len(self._queue) + len(self._parking)

    @property
    def waiting_tokens(self) -> int:
        """`Job.weight_tokens` of the jobs that wait. May be asked for in any thread."""
        return self._queue.tokens + self._parking.tokens

    def job_of(self, completion: Completion) -> Job | None:
        """The job of a completion; None where it is not under way."""
        return self._jobs.get(completion)

    def add(self, job: Job) -> None:
        """Lets a job wait that has arrived."""
        self._jobs[job.completion] = job
        self._queue.put(job)
        if job.completion.expires_at is not None:
            self._deadlines[job.completion.expires_at, job.number] = job

    def expired(self, now: float) -> list[Job]:
        """Jobs whose time is over."""
        return [self._deadlines[key] for key in self._deadlines.irange(maximum=(now, float("inf")))]

    def _end(self, job: Job, reason: str, error: Exception | None) -> None:
        end = self._end_of_owner()
        assert end is not None, "the engine is gone"
        end(job, reason, error)

    def remove(self, job: Job, was_running: bool) -> None:
        """Forgets a job that ended."""
        del self._jobs[job.completion]
        if was_running:
            self.running.remove(job)
            self._room = None
            self._ended_well += 1
            if self._most_running is not None and self._ended_well >= self._most_running:
                self._most_running = None
        elif job.awaits is not None:
            self._parking.remove(job)
        else:
            self._queue.remove(job)
        if job.completion.expires_at is not None:
            del self._deadlines[job.completion.expires_at, job.number]
        if job is self._starved:
            self._starved = None

    # ---- admission

    @property
    def _seats(self) -> int:
        """Most sequences that may run now."""
        if self._most_running is None:
            return self._config.max_running
        return min(self._config.max_running, self._most_running)

    def admit(self) -> None:
        """Admits waiting jobs, in the queue's order, while there is room."""
        for job in self._parking.release(self._config.max_running):
            self._wait_again(job)
        self._room = None
        shares, parked = self._shares(), 0
        while parked < _MOST_PARKED:
            # Scopes with their share come after those without: else what one gets another one would soon take back.
            at_share = shares.at_share
            first, is_due = self._queue.first(at_share), True
            if first is None and at_share:
                first, is_due = self._queue.first(), False
            if first is None:
                return
            try:
                while (tried := self._try(first, shares if is_due else None)) is _Try.AGAIN:
                    # The same job: those who made way for it come before it in the queue.
                    shares = self._shares()
            except Exception as error:
                self._end(first, "error", error)
                continue
            if tried is _Try.NO_ROOM:
                return
            if tried is _Try.PARKED:
                parked += 1
            elif first.kv is not None:
                shares.add(first)

    def _wait_again(self, job: Job) -> None:
        if job.completion.preemptions:
            self._queue.put_back(job)
        else:
            self._queue.put(job)

    def _shares(self) -> Shares:
        return Shares.of(self.running, self._queue.scopes, self._seats, self._memory.pool.slots)

    def _try(self, job: Job, shares: Shares | None) -> _Try:
        """Admits one job, unless another one is computing chunks that it needs, too, or there is no room."""
        may_take = shares is not None and shares.has_excess
        if not may_take and (len(self.running) >= self._seats or self._is_still_blocked(job)):
            return _Try.NO_ROOM
        request = job.completion.request
        tokens = job.token_bytes
        # A hit leaves one token to compute, so that there are logits; a bare prefill needs none.
        limit = len(tokens) if request.prefill_only else len(tokens) - TOKEN_BYTES
        match = self._memory.tree.match(request.root, tokens[:limit], request.readable)
        if match.awaits is None and self.running:
            # Alone, a job may take what there is: `gather` finds out who could help where that is not enough.
            found = self._find_room(job, match, shares)
            if found is not _Try.DONE:
                return found
        if match.awaits is None and self._memory.records is not None:
            match = load_missing(self._memory, request.root, request.readable, tokens[:limit])
        if match.awaits is not None:
            self._queue.set_aside(job)
            self._parking.park(job, match.awaits)
            return _Try.PARKED
        self._open(job, match, tokens)
        return _Try.DONE

    def _open(self, job: Job, match: Match, tokens: bytes) -> None:
        completion = job.completion
        chunks = self.needs.chunks(job)
        job.kv = open_sequence(self._memory, match, tokens)
        left = completion.request.max_new_tokens - len(completion.tokens)
        self._queue.taken(job, len(tokens) // TOKEN_BYTES - job.kv.cached_tokens + left)
        self.running.append(job)
        job.promised = chunks - len(match.path)
        if self._room is not None:
            self._room.promise(match.path, self.needs.to_come(job))
        if not completion.preemptions:
            completion.admitted_at = time.perf_counter()
            completion.cached_tokens = job.kv.cached_tokens
            self._memory.counters["cached_tokens"] += job.kv.cached_tokens
        if job.to_compute == 0:
            self._end(job, "prefilled", None)

    def _find_room(self, job: Job, match: Match, shares: Shares | None) -> _Try:
        """Whether there are a seat and chunks for a job. Preempts another one where it is entitled to that."""
        if self._room is None:
            promised = sum(self.needs.to_come(other) for other in self.running)
            self._room = Room(self._memory, promised + self._holders.to_come())
        chunks = self.needs.chunks(job)
        lacks_seat = len(self.running) >= self._seats
        lacking = self._room.lacks(match, chunks)
        if not lacks_seat and not lacking:
            return _Try.DONE
        if lacking:
            job.blocked_at = self.memory_waits.held()
        if shares is None or not shares.entitles(job, chunks - len(match.path)):
            return _Try.NO_ROOM
        owner = shares.seat_owner() if lacks_seat else shares.chunk_owner()
        if owner is None or lacking > shares.excess_chunks:
            return _Try.NO_ROOM
        self._preempt(youngest_of(self.running, owner))
        return _Try.AGAIN

    def _is_still_blocked(self, job: Job) -> bool:
        """Whether nothing has become free since a job found no room."""
        if job.blocked_at is None or not self.running:
            return False
        return not any(now < then for now, then in zip(self.memory_waits.held(), job.blocked_at))

    # ---- a step's rows

    def gather(self) -> list[tuple[Job, int]]:
        """Jobs and how many rows each gets, with room reserved; the youngest make way when memory is short."""
        batch: list[tuple[Job, int]] = []
        try:
            self._steps.reserve_ahead(self.running)
        except Exception:
            # A convenience; the job at fault fails when it reserves for this step.
            _LOG.exception("no slots reserved ahead")
        prefill = self._prefill()
        for job in list(self.running):
            rows = prefill.get(job, 1)
            if job.kv is None or rows == 0:
                continue
            try:
                while job.kv is not None and not job.kv.reserve(rows):
                    self._make_way(job)
            except Exception as error:
                self._end(job, "error", error)
            if job.kv is not None:
                batch.append((job, rows))
        return batch

    def _prefill(self) -> dict[Job, int]:
        """Rows of the jobs that have more than one token to compute."""
        self._turn += 1
        jobs = [job for job in self.running if job.to_compute > 1]
        if not jobs:
            return {}
        # Decoding sequences come first: a long prompt must not hold up the others' next tokens.
        budget = max(1, self._config.step_tokens - (len(self.running) - len(jobs)))
        awaited = self._parking.claims
        prompts = [
            Prefill(job.scope, job.to_compute, job.priority, job.kv is not None and job.kv.claim in awaited)
            for job in jobs
        ]
        return dict(zip(jobs, prefill_rows(prompts, budget, self._config.prefill_part, self._turn)))

    # ---- memory is short

    def _make_way(self, job: Job) -> None:
        if len(self.running) > 1:
            self.preempt(self.running[-1])
            return
        if self.memory_waits.at_fault(job, self.jobs) is job:
            self._end(job, "error", self.memory_waits.exhausted(job))
            return
        # It keeps no slots meanwhile: whoever holds the rest may need them to get on.
        self.preempt(job)
        self._starved, self._held_then = job, self.memory_waits.held()

    def is_starving(self, is_inside: bool) -> bool:
        """Whether all have to wait for memory that others hold. Ends a job that would wait for ever.

        Args:
            is_inside: this thread holds the lock beyond this step, so that nobody else gets on meanwhile.
        """
        job = self._starved
        if job is None:
            return False
        if not any(now < then for now, then in zip(self.memory_waits.held(), self._held_then)):
            at_fault = job if is_inside else self.memory_waits.at_fault(job, self.jobs)
            if at_fault is None:
                return True
            self._end(at_fault, "error", self.memory_waits.exhausted(at_fault))
        self._starved = None
        return False

    def preempt(self, job: Job) -> None:
        """Takes a running job's slots, as memory is short; it starts over when it is admitted again."""
        self._preempt(job)
        self._most_running = max(1, len(self.running))
        self._ended_well = 0

    def _preempt(self, job: Job) -> None:
        kv, job.kv = job.kv, None
        assert kv is not None
        job.completion.preemptions += 1
        job.blocked_at = None
        self._memory.counters["preemptions"] += 1
        self.running.remove(job)
        self._queue.put_back(job)
        self._room = None
        kv.close()

    def make_way(self) -> bool:
        """Preempts the youngest job, for a sequence that cannot wait. False where none is left."""
        if not self.running:
            return False
        self.preempt(self.running[-1])
        return True

    def can_others_get_on(self) -> bool:
        """See `MemoryWaits`."""
        return self.memory_waits.can_others_get_on(self.jobs)
