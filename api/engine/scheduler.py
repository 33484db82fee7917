"""Who takes part in a step: jobs that wait, jobs that run, and who makes way when memory is short.

Nothing is computed here. The engine calls, in this order within a step:

    is_starving   all wait for memory that others hold: nobody is admitted
    admit         waiting -> running: match, load, lease, claim
    gather        the step's batch, with room reserved for its rows; the youngest jobs make way for the others

and `remove` whenever a job ends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import get_ident
from weakref import WeakMethod

import numpy as np

from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.load_missing import load_missing
from kvtrie.api.engine.request import Job
from kvtrie.api.engine.sequence_kv import open_sequence
from kvtrie.api.engine.step_runner import StepRunner
from kvtrie.api.engine.waits import Waits
from kvtrie.prefix_tree.errors import PoolExhausted
from kvtrie.prefix_tree.keys import TOKEN_BYTES

_LOG = logging.getLogger(__name__)

End = Callable[[Job, str, Exception | None], None]
"""A method that ends a job: with a finish reason, and with the error that ended it."""


class Scheduler:
    """Jobs under way. Its owner holds the engine's lock.

    Args:
        memory: where KV is.
        config: limits of a step.
        steps: reserves room ahead where decode steps are captured.
        holders: sequences that left the engine, and the threads that hold them.
        waits: calls that wait for requests, by thread.
        end: ends a job that cannot go on, and calls `remove`.
    """

    def __init__(
        self,
        memory: KvMemory,
        config: EngineConfig,
        steps: StepRunner,
        holders: HandedOver,
        waits: Waits,
        end: End,
    ) -> None:
        self._memory = memory
        self._config = config
        self._steps = steps
        self._holders = holders
        self._waits = waits
        # Weakly, as the engine owns this: in a cycle, a closed wrapper's pool would outlive it for a while.
        self._end_of_owner = WeakMethod(end)
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        """Oldest first: the last one is preempted first."""
        self._short = False
        """Memory ran out; nobody is admitted until someone leaves."""
        self._starved: Job | None = None
        """Found no room even alone: nobody is admitted until what others hold has become less."""
        self._held_then = (0, 0)
        """`_held` when that job found no room."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are under way."""
        return (*self.running, *self.waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or running."""
        return not self.waiting and not self.running

    def _end(self, job: Job, reason: str, error: Exception | None) -> None:
        end = self._end_of_owner()
        assert end is not None, "the engine is gone"
        end(job, reason, error)

    def remove(self, job: Job, was_running: bool) -> None:
        """Forgets a job that ended."""
        if was_running:
            self.running.remove(job)
            self._short = False
        else:
            self.waiting.remove(job)
        if job is self._starved:
            self._starved = None

    def admit(self) -> None:
        """Admits waiting jobs, in their order, while there is room."""
        for job in list(self.waiting):
            if len(self.running) >= self._config.max_running or (self._short and self.running):
                return
            if job.awaits is not None and job.awaits.claim is not None:
                continue
            try:
                self._open(job)
            except Exception as error:
                self._end(job, "error", error)

    def _open(self, job: Job) -> None:
        """Admits one job, unless another one is computing chunks that it needs, too."""
        request = job.completion.request
        tokens = _int32le(job.tokens)
        # A hit leaves one token to compute, so that there are logits; a bare prefill needs none.
        limit = len(tokens) if request.prefill_only else len(tokens) - TOKEN_BYTES
        match = load_missing(self._memory, request.root, request.readable, tokens[:limit])
        job.awaits = match.awaits
        if match.awaits is not None:
            return
        job.kv = open_sequence(self._memory, match, tokens)
        self.waiting.remove(job)
        self.running.append(job)
        if not job.completion.preemptions:
            job.completion.cached_tokens = job.kv.cached_tokens
            self._memory.counters["cached_tokens"] += job.kv.cached_tokens
        if job.to_compute == 0:
            self._end(job, "prefilled", None)

    def gather(self) -> list[tuple[Job, int]]:
        """Jobs and how many rows each gets, with room reserved; the youngest make way when memory is short."""
        batch: list[tuple[Job, int]] = []
        try:
            self._steps.reserve_ahead(self.running)
        except Exception:
            # A convenience; the job at fault fails when it reserves for this step.
            _LOG.exception("no slots reserved ahead")
        # Decoding sequences come first: a long prompt must not hold up the others' next tokens.
        decoding = sum(job.to_compute == 1 for job in self.running)
        budget = max(1, self._config.step_tokens - decoding)
        for job in list(self.running):
            if job.kv is None:
                continue
            rows = min(job.to_compute, budget) if job.to_compute > 1 else 1
            if rows == 0:
                continue
            try:
                while job.kv is not None and not job.kv.reserve(rows):
                    self._make_way(job)
            except Exception as error:
                self._end(job, "error", error)
            if job.kv is not None:
                batch.append((job, rows))
                budget -= rows if job.to_compute > 1 else 0
        return batch

    # ---- memory is short

    def _make_way(self, job: Job) -> None:
        if len(self.running) > 1:
            self.preempt(self.running[-1])
            return
        at_fault = self._whom_nobody_helps(job)
        if at_fault is job:
            self._end(job, "error", self._exhausted(job))
            return
        # It keeps no slots meanwhile: whoever holds the rest may need them to get on.
        self.preempt(job)
        self._starved, self._held_then = job, self._held()

    def is_starving(self, is_inside: bool) -> bool:
        """Whether all have to wait for memory that others hold. Ends a job that would wait for ever.

        Args:
            is_inside: this thread holds the lock beyond this step, so that nobody else gets on meanwhile.
        """
        job = self._starved
        if job is None:
            return False
        if not any(now < then for now, then in zip(self._held(), self._held_then)):
            at_fault = job if is_inside else self._whom_nobody_helps(job)
            if at_fault is None:
                return True
            self._end(at_fault, "error", self._exhausted(at_fault))
        self._starved = None
        return False

    def _held(self) -> tuple[int, int]:
        """Holds on paths, and slots that are not free: with less of either, a job may find room that found none."""
        tree, pool = self._memory.tree, self._memory.pool
        tree.expire_pins()
        return len(tree.leases) + len(tree.pins), pool.slots - pool.free_slots.free

    def _whom_nobody_helps(self, job: Job) -> Job | None:
        """The job to end because no thread that holds memory can get on; None where one can.

        A thread cannot that waits for a job of this engine. Where there is such a job by a thread that itself holds
        memory, that one is at fault, and `job`, which found no room, may find some afterwards.
        """
        holders = self._holders.threads()
        if any(not self._is_stuck(thread) for thread in holders):
            return None
        return next((other for other in (job, *self.waiting) if other.completion.thread in holders), job)

    def _is_stuck(self, thread: int) -> bool:
        """Whether a thread waits for jobs that are not done."""
        if self._waits.is_waiting(thread):
            return True
        # By steps of its own: `stream` does, and knows nothing to do between them.
        return thread == get_ident() and any(job.completion.thread == thread for job in self.jobs)

    def _exhausted(self, job: Job) -> PoolExhausted:
        held = self._memory.tree.tiers[0].used_bytes
        if job.completion.thread in self._holders.threads():
            return PoolExhausted(
                f"no slot can be freed for a sequence of {len(job.tokens)} tokens: the thread that asks holds the "
                "memory itself, in generate() or by a batch of prompts, and waits for this; ask outside of it, or "
                "raise memory="
            )
        return PoolExhausted(
            f"no slot can be freed for a sequence of {len(job.tokens)} tokens: pins and sequences of "
            f"generate() hold the pool ({held} bytes in the tree); unpin, or raise memory="
        )

    def preempt(self, job: Job) -> None:
        """Takes a running job's slots; it starts over when it is admitted again."""
        kv, job.kv = job.kv, None
        assert kv is not None
        job.completion.preemptions += 1
        self._memory.counters["preemptions"] += 1
        self.running.remove(job)
        self.waiting.appendleft(job)
        self._short = True
        kv.close()

    def make_way(self) -> bool:
        """Preempts the youngest job, for a sequence that cannot wait. False where none is left."""
        if not self.running:
            return False
        self.preempt(self.running[-1])
        return True


def _int32le(tokens: list[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()
