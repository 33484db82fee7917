"""The engine: continuous batching over shared KV.

One `step` is one forward pass over whatever needs computing: a row per decoding sequence, and as many prompt
tokens as the step's budget allows. Sequences join and leave at any step. The way of a request:

    submit -> inbox -> waiting --admit: match, load, lease, claim--> running --commit, sample--> done
                          ^  \\_ waits while another request computes the same chunks (holds no slots)
                          └── preempted: memory is short, the youngest loses its slots and starts over

A thread that calls `step`, `run` or `wait` makes the steps; or an `EngineLoop` does, in a thread of its own.

An error that a request raises, from its admission to its last token, ends that request: its completion has the
error, its slots, lease and claim are given back, and other requests continue. So `step`, `run` and `wait` do not
raise it. They raise what no request is the cause of: an interrupt of the caller's thread, or a broken invariant.
That ends no request, unless it was raised in an `EngineLoop`: the loop ends then, and all requests with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

import torch

from kvtrie.api.engine.driving import Driving
from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.fair_queue import FairQueue
from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.held_interrupts import HeldInterrupts
from kvtrie.api.engine.inbox import Inbox
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.memory_waits import MemoryWaits
from kvtrie.api.engine.request import Completion, Job, Request
from kvtrie.api.engine.room_for_rows import RoomForRows
from kvtrie.api.engine.sampling.choose import Chooser, ChosenToken
from kvtrie.api.engine.sampling.grammar import Grammars
from kvtrie.api.engine.scheduler import Scheduler
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.api.engine.step_runner import StepOutcome, StepRunner
from kvtrie.api.engine.waiting_limits import Pace, check_waiting
from kvtrie.api.engine.waiting_queue import WaitingQueue
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.api.traffic.traffic_watch import TrafficWatch
from kvtrie.prefix_tree.errors import EngineStopped, InputError, ModelOutputError, PoolExhausted
from kvtrie.prefix_tree.keys import TokenArray

T = TypeVar("T")

_LOOK_SECONDS = 0.02
"""Pause between two looks whether memory held elsewhere has become free, while nothing else can be done."""

_LOG = logging.getLogger(__name__)


class Engine(Driving):
    """Runs requests over one model and one memory. Thread-safe: steps are serialised by a lock.

    Args:
        memory: pool and tree.
        facts: the model, and what kvtrie knows of it.
        identity: digests of the model.
        config: limits of a step, and of the requests that wait.
        watch: is told of every request that has ended; default one that follows KVTRIE_TRACE.
        queue: orders the waiting requests; default a `FairQueue`, fair to scopes.
        clock: a steady clock in seconds, for deadlines.
    """

    def __init__(
        self,
        memory: KvMemory,
        facts: ModelFacts,
        identity: ModelIdentity,
        config: EngineConfig | None = None,
        watch: TrafficWatch | None = None,
        queue: WaitingQueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.config = config or EngineConfig()
        self.lock = threading.RLock()
        """Lock that is held while tree or pool change, and during every forward pass of the model."""
        self.watch = watch or TrafficWatch(memory.shape.chunk_tokens, "engine")
        """Request log and what-if curves."""
        self._steps = StepRunner(
            memory,
            ModelRunner(facts, memory.pool, self.lock),
            identity,
            graphs_for=self.config.max_running if self.config.decode_graphs else 0,
        )
        self._chooser = Chooser()
        self._grammars = Grammars()
        self._is_stepping = False
        self._holders = HandedOver(self._make_way)
        self._scheduler = Scheduler(
            memory,
            self.config,
            FairQueue() if queue is None else queue,
            self._steps,
            self._holders,
            MemoryWaits(memory, self._holders, self._waits),
            self._finish,
        )
        self._room_for_rows = RoomForRows(self.lock, self._holders, self._waits, self._scheduler)
        self._clock = clock
        self._inbox = Inbox()
        self._numbers = count()
        self._pace = Pace()
        self._ids: dict[str, list[Completion]] = {}
        """Requests under way that have an id."""
        self._news: deque[Completion] = deque()
        """Completions that others are to be told of at the end of the step."""
        self._ended = 0
        """Counts requests that ended."""
        self._orphans: list[SequenceKV] = []
        """Sequences to be closed at the next step."""
        self._ownership = threading.Condition(self.lock)

    def submit(self, request: Request) -> Completion:
        """Queues a request; later calls of `step` compute it. Takes no lock that a step holds.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, more positions than the model has, a
                constraint that the tokenizer or its size does not admit, or a root of another tree.
            PoolExhausted: prompt and completion together can never fit the pool.
            QueueFull: as many requests, or tokens of requests, wait already as may.
            EngineStopped: the engine's loop has failed, or is about to end.
        """
        loop = self.loop
        if loop is not None:
            loop.check_open()
        if len(request.tokens) or not request.prefill_only:
            self.check(request.tokens, request.max_new_tokens)
        for root in (request.root, *request.readable):
            if not self.memory.tree.has_root(root):
                raise InputError(f"the root of scope {root.scope} belongs to another wrapper's tree")
        expires_at = None if request.deadline_seconds is None else self._clock() + request.deadline_seconds
        completion = Completion(request, time.perf_counter(), expires_at, self._inbox.cancelled)
        job = Job(completion, next(self._numbers))
        self._check_sampling(job)
        if not request.prefill_only:
            waiting = len(self._inbox) + self._scheduler.waiting
            tokens = self._inbox.tokens + self._scheduler.waiting_tokens
            check_waiting(self.config, self._pace, waiting, tokens, job.weight_tokens)
        self._inbox.put(job)
        if loop is not None:
            loop.wake()
            if loop.is_closed:
                # It may have overlooked this one.
                self.discard([completion])
                loop.check_open()
        return completion

    def abort(self, request_id: str) -> None:
        """Cancels the requests under way that have this id: at once, or at the start of the next step.

        Waits for nothing. An id that no request has is fine: it may be through.
        """
        self._inbox.aborted.append(request_id)
        if not self._is_locked_here() and self.lock.acquire(blocking=False):
            # Nobody steps: those that wait need no step to leave.
            try:
                with HeldInterrupts():
                    self._catch_up()
                    self._tell()
            finally:
                self.lock.release()

    def _check_sampling(self, job: Job) -> None:
        """Whether a request's tokens can be chosen as it asks. Opens its constraint: without the lock, as this may
        take a second."""
        request, vocabulary = job.completion.request, self._steps.runner.vocabulary
        request.sampling.check_vocabulary(vocabulary)
        if request.sampling.constraint is not None and not request.prefill_only:
            job.grammar = self._grammars.open(
                request.sampling.constraint, request.tokenizer, vocabulary, request.ends
            )

    def check(self, tokens: TokenArray, max_new_tokens: int) -> None:
        """Checks that a prompt (int32 `[tokens]`) and a completion of `max_new_tokens` can be run.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, or more positions than the model has.
            PoolExhausted: together they can never fit the pool.
        """
        self._steps.runner.check_tokens(tokens, max_new_tokens)
        shape, slots = self.memory.shape, self.memory.pool.slots
        needed = -(-(len(tokens) + max_new_tokens) // shape.chunk_tokens)
        if needed > slots:
            raise PoolExhausted(
                f"{len(tokens)} prompt + {max_new_tokens} new tokens need {needed} chunks, the pool has {slots}; "
                f"raise memory= to at least {needed * shape.chunk_bytes} bytes"
            )

    def discard(self, completions: list[Completion]) -> None:
        """Cancels those of `completions` that are under way, and frees the KV of those that were prefilled."""
        for completion in completions:
            if not completion.done:
                completion.cancel()
        # True only if a garbage collection ends a stream inside a step: the tree may be in the middle of a change,
        # so the next step drops the sequence.
        is_inside = self._is_locked_here()
        with self.lock, HeldInterrupts():
            for completion in completions:
                if completion.kv is not None:
                    self._orphans.append(completion.kv)
                    completion.kv = None
            if not is_inside:
                self._catch_up()
                self._tell()

    def cancel_all(self) -> None:
        """Cancels every request that is still under way."""
        with self.lock, HeldInterrupts():
            for completion in self.under_way():
                completion.cancel()
            if not self._is_stepping:
                self._catch_up()
                self._tell()

    def end_all(self, cause: BaseException) -> None:
        """Ends every request under way with `EngineStopped`: a loop's, once `cause` has ended it."""
        with self.lock, HeldInterrupts():
            for completion in self.under_way():
                error = EngineStopped(f"the engine has failed, and this request with it: {cause!r}")
                error.__cause__ = cause
                job = self._scheduler.job_of(completion)
                assert job is not None
                try:
                    self._finish(job, "error", error)
                except Exception:
                    # Whatever is broken, nobody may wait for ever.
                    _LOG.exception("a request was not ended in order")
                    completion.error, completion.finish_reason = error, "error"
                    self._news.append(completion)
            self._tell()

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not len(self._inbox) and self._scheduler.idle

    @property
    def running(self) -> int:
        """Number of running requests. Takes no lock."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Number of waiting requests. Takes no lock."""
        return len(self._inbox) + self._scheduler.waiting

    def owns(self, completion: Completion) -> bool:
        """Whether a completion is of a request that was submitted here."""
        return completion.cancels is self._inbox.cancelled

    def under_way(self) -> Sequence[Completion]:
        """Completions of all requests that are waiting or running. Waits for a step that is being made."""
        with self.lock, HeldInterrupts():
            self._inbox.take_in(self._arrive)
            return [job.completion for job in self._scheduler.jobs]

    def when_there_is_room(self, attempt: Callable[[], T]) -> T:
        """See `RoomForRows`: what takes memory for sequences that have left the engine is done in it."""
        return self._room_for_rows.take(attempt, self._is_locked_here())

    def step(self) -> None:
        """Runs one forward pass. The completion of a request that fails has its error; other requests continue.

        If every request waits for memory that is held elsewhere, e.g. by rows of `generate` in another thread, this
        returns after a short sleep. A request fails if no such thread can ever free memory for it.

        A signal handler that raises, as on Ctrl-C, does so in the forward pass or at the end of the step. Requests
        then are as they were before the pass, and the next step computes the same rows again.

        Raises:
            InputError: called from inside a step, e.g. by a hook of the model.
        """
        is_inside = self._is_locked_here()
        with self.lock, HeldInterrupts() as interrupts:
            if self._is_stepping:
                raise InputError("step() was called from inside a step; submit() there, and step afterwards")
            self._is_stepping = True
            ended = self._ended
            try:
                self._catch_up()
                is_starving = self._scheduler.is_starving(is_inside)
                if not is_starving:
                    self._scheduler.admit()
                batch = self._scheduler.gather()
                if batch:
                    began = time.perf_counter()
                    self._compute(batch, interrupts)
                    self._pace.computed(sum(rows for _, rows in batch), time.perf_counter() - began)
                self.memory.check_if_asked()
            finally:
                self._is_stepping = False
                self._tell()
            is_in_vain = not batch and ended == self._ended and not self.idle
        if is_starving or is_in_vain:
            time.sleep(_LOOK_SECONDS)

    def _is_locked_here(self) -> bool:
        """Whether this thread holds the lock already."""
        try:
            self._ownership.notify_all()
        except RuntimeError:
            # A condition raises this if the thread does not hold its lock.
            return False
        return True

    # ---- what others have left, and what they are told

    def _catch_up(self) -> None:
        """Empties the inbox: new requests, cancelled and aborted ones."""
        self._holders.close_lost()
        while self._orphans:
            self._orphans.pop().close()
        self._inbox.take_in(self._arrive)
        # Taken out of each only when it is done with: an interrupt must not lose any.
        while self._inbox.cancelled:
            self._end_early(self._inbox.cancelled[0])
            self._inbox.cancelled.popleft()
        while self._inbox.aborted:
            for completion in list(self._ids.get(self._inbox.aborted[0], ())):
                self._end_early(completion)
            self._inbox.aborted.popleft()
        for job in self._scheduler.expired(self._clock()):
            self._finish(job, "expired")

    def _arrive(self, job: Job) -> None:
        """Takes in a request."""
        request = job.completion.request
        for root in (request.root, *request.readable):
            if not root.nodes:
                # Asked for just now: a namespace without chunks is not forgotten before others.
                self.memory.tree.root(root.namespace)
        self.memory.counters["requests"] += 1
        self.memory.counters["prompt_tokens"] += len(request.tokens)
        if request.request_id is not None:
            self._ids.setdefault(request.request_id, []).append(job.completion)
        self._scheduler.add(job)

    def _end_early(self, completion: Completion) -> None:
        job = self._scheduler.job_of(completion)
        if job is not None:
            self._finish(job, "cancelled")

    def _forget_id(self, completion: Completion) -> None:
        name = completion.request.request_id
        if name is not None:
            self._ids[name].remove(completion)
            if not self._ids[name]:
                del self._ids[name]

    def _tell(self) -> None:
        """Calls those who want to hear of what the step brought."""
        while self._news:
            self._news.popleft().tell()

    def _make_way(self) -> bool:
        """Frees slots for a sequence that left the engine; between steps only."""
        return not self._is_stepping and self._scheduler.make_way()

    # ---- what is computed

    def _compute(self, batch: list[tuple[Job, int]], interrupts: HeldInterrupts) -> None:
        try:
            # Begun and ended while handlers are delayed: an interrupt in between would leave its end to the garbage
            # collector, and so to the middle of some later pass.
            with torch.inference_mode(), interrupts.lifted():
                outcome = self._steps.run(batch)
        except Exception as error:
            if interrupts.raised is not None:
                # A signal handler's error, not the model's: these requests go on with the next step.
                raise
            for job, _ in batch:
                self._finish(job, "error", error, poisoned=True)
            return
        choices = self._choose(batch, outcome)
        for row, (job, rows) in enumerate(batch):
            try:
                self._take_in(job, rows, outcome, row, choices.get(row))
            except Exception as error:
                self._finish(job, "error", error)
            except BaseException:
                # A lower tier's, for nothing else runs here that may raise one. Its token is lost.
                if job.kv is not None:
                    self._scheduler.preempt(job)
                raise
            if job.completion.is_listened_to:
                self._news.append(job.completion)

    def _choose(
        self, batch: list[tuple[Job, int]], outcome: StepOutcome
    ) -> dict[int, ChosenToken | Exception]:
        """Next tokens of rows whose whole prompt has KV after this step, or the errors that end their requests."""
        choices: dict[int, ChosenToken | Exception] = {}
        samplers = {}
        for row, (job, rows) in enumerate(batch):
            if outcome.finite[row] and job.to_compute == rows and not job.completion.request.prefill_only:
                try:
                    samplers[row] = job.start_sampling()
                except Exception as error:
                    choices[row] = error
        places = list(samplers)
        likeliest = [outcome.likeliest[row] for row in places]
        found = self._chooser.choose(list(samplers.values()), outcome.logits, places, likeliest)
        return choices | dict(zip(places, found))

    def _take_in(
        self, job: Job, rows: int, outcome: StepOutcome, row: int, choice: ChosenToken | Exception | None
    ) -> None:
        """Takes over one job's results of a forward pass, or ends the job."""
        if not outcome.model.describe(job.completion.request.root.namespace):
            error: Exception = InputError(
                "the model's weights or adapters changed while this request was under way; nothing of "
                "this step was cached. Let requests finish first, or cancel them"
            )
        elif not outcome.finite[row]:
            error = ModelOutputError(
                f"the model's logits after token {job.tokens[-1]} are not finite; nothing of this step "
                "was cached. Check the weights and the dtype"
            )
        else:
            self._advance(job, rows, choice)
            return
        self._finish(job, "error", error, poisoned=True)

    def _advance(self, job: Job, rows: int, choice: ChosenToken | Exception | None) -> None:
        """Commits the KV of a finite forward pass, and adds the chosen token once the whole prompt has KV."""
        assert job.kv is not None
        start = job.kv.context_tokens
        job.kv.commit(job.tokens[start : start + rows])
        if job.to_compute:
            return
        completion = job.completion
        if completion.request.prefill_only:
            self._finish(job, "prefilled")
            return
        assert choice is not None
        if isinstance(choice, Exception):
            raise choice
        reason = job.take(choice)
        if completion.first_token_at is None:
            completion.first_token_at = time.perf_counter()
        if reason is not None:
            self._finish(job, reason)

    def _finish(
        self, job: Job, reason: str, error: Exception | None = None, *, poisoned: bool = False
    ) -> None:
        """Ends a job. Gives back its memory, or hands it over after a `prefill_only` request."""
        completion = job.completion
        kv, job.kv = job.kv, None
        self._scheduler.remove(job, was_running=kv is not None)
        self._ended += 1
        self._forget_id(completion)
        if reason in ("length", "stop"):
            self._scheduler.needs.lengths.ended(completion.request, len(completion.tokens))
        path = [] if kv is None else kv.path
        try:
            if kv is not None and reason == "prefilled":
                kv.hand_over(self._holders, completion.thread, self._scheduler.needs.chunks(job))
                completion.kv = kv
            elif kv is not None:
                kv.close(poisoned=poisoned)
        except Exception as failure:
            _LOG.exception("a request's memory was not given back in order")
            error = error or failure
            reason = "error"
        completion.error = error
        completion.finished_at = time.perf_counter()
        # Last: a thread that waits for it may read the completion from now on.
        completion.finish_reason = reason
        self._news.append(completion)
        if kv is not None:
            try:
                request = completion.request
                self.watch.completed(
                    request.root.scope,
                    len(request.tokens),
                    len(completion.tokens),
                    completion.submitted_at,
                    path,
                )
            except Exception:
                _LOG.exception("a request was not told to the traffic watch")
