"""The engine: continuous batching over shared KV.

One `step` is one forward pass over whatever needs computing: a row per decoding sequence, and as many prompt
tokens as the step's budget allows. Sequences join and leave at any step. The way of a request:

    submit -> waiting --admit: match, load, lease, claim--> running --commit, sample--> done
                 ^  \\_ waits while another request computes the same chunks (holds no slots)
                 └── preempted: memory is short, the youngest loses its slots and starts over

An error that a request raises, from its admission to its last token, ends that request: its completion has the
error, its slots, lease and claim are given back, and other requests continue. So `step`, `run` and `wait` do not
raise it. They raise what no request is the cause of: an interrupt of the caller's thread, or a broken invariant;
that ends no request.
"""

from __future__ import annotations

import logging
import threading
import time

import torch

from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.held_interrupts import HeldInterrupts
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.request import Completion, Job, Request
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.scheduler import Scheduler
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.api.engine.step_runner import StepOutcome, StepRunner
from kvtrie.api.engine.waits import Waits, wait_of_this_thread
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.api.traffic.traffic_watch import TrafficWatch
from kvtrie.prefix_tree.errors import InputError, ModelOutputError, PoolExhausted
from kvtrie.prefix_tree.keys import TokenArray

_LOOK_SECONDS = 0.02
"""Pause between two looks whether memory held elsewhere has become free, while nothing else can be done."""

_LOG = logging.getLogger(__name__)


class Engine:
    """Runs requests over one model and one memory. Thread-safe: steps are serialised by a lock.

    `PrefixCachedModel.engine` is one; there is seldom a reason to make another.

    Args:
        memory: pool and tree.
        facts: the model, and what kvtrie knows of it.
        identity: digests of the model.
        config: limits of a step.
        watch: is told of every request that has ended; default one that follows KVTRIE_TRACE.
    """

    def __init__(
        self,
        memory: KvMemory,
        facts: ModelFacts,
        identity: ModelIdentity,
        config: EngineConfig | None = None,
        watch: TrafficWatch | None = None,
    ) -> None:
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
        self._is_stepping = False
        self._holders = HandedOver(self._make_way)
        self._waits = Waits()
        """Calls of `wait` and `run` that are under way."""
        self._scheduler = Scheduler(
            memory, self.config, self._steps, self._holders, self._waits, self._finish
        )
        self._orphans: list[SequenceKV] = []
        """Sequences to be closed at the next step."""
        self._ownership = threading.Condition(self.lock)

    def submit(self, request: Request) -> Completion:
        """Queues a request; calls of `step` compute it.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, more positions than the model has, or a
                root of another tree.
            PoolExhausted: prompt and completion together can never fit the pool.
        """
        if len(request.tokens) or not request.prefill_only:
            self.check(request.tokens, request.max_new_tokens)
        completion = Completion(request, time.perf_counter())
        job = Job(completion)
        with self.lock, HeldInterrupts():
            for root in (request.root, *request.readable):
                if self.memory.tree.root(root.namespace) is not root:
                    raise InputError(f"the root of scope {root.scope} belongs to another wrapper's tree")
            self._scheduler.waiting.append(job)
            self.memory.counters["requests"] += 1
            self.memory.counters["prompt_tokens"] += len(request.tokens)
        return completion

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
                self._drop_cancelled()

    def cancel_all(self) -> None:
        """Cancels every request that is still under way."""
        with self.lock, HeldInterrupts():
            for job in self._scheduler.jobs:
                job.completion.cancel()
            if not self._is_stepping:
                self._drop_cancelled()

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return self._scheduler.idle

    def run(self) -> None:
        """Steps until no request is waiting or running. The completion of a request that failed has its error."""
        waiting = wait_of_this_thread(None)
        try:
            self._waits.begin(waiting)
            while not self.idle:
                self.step()
        finally:
            self._waits.end(waiting)

    def wait(self, completions: list[Completion]) -> None:
        """Steps until all of `completions` are done; other requests advance too. One that failed has its error.

        Raises:
            InputError: one of them is not a request of this engine: it would never be done.
        """
        waiting = wait_of_this_thread(completions)
        try:
            self._waits.begin(waiting)
            while not self._all_done(completions):
                self.step()
        finally:
            self._waits.end(waiting)

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
            try:
                self._drop_cancelled()
                is_starving = self._scheduler.is_starving(is_inside)
                if not is_starving:
                    self._scheduler.admit()
                batch = self._scheduler.gather()
                if batch:
                    self._compute(batch, interrupts)
                self.memory.check_if_asked()
            finally:
                self._is_stepping = False
        if is_starving:
            time.sleep(_LOOK_SECONDS)

    def _is_locked_here(self) -> bool:
        """Whether this thread holds the lock already."""
        try:
            self._ownership.notify_all()
        except RuntimeError:
            # A condition raises this if the thread does not hold its lock.
            return False
        return True

    def _all_done(self, completions: list[Completion]) -> bool:
        if all(completion.done for completion in completions):
            return True
        if self.idle:
            with self.lock:
                # Both once more, now that no step is under way.
                if self.idle and not all(completion.done for completion in completions):
                    raise InputError("wait() was given a request of another engine; wait for it there")
        return False

    def _drop_cancelled(self) -> None:
        self._holders.close_lost()
        while self._orphans:
            self._orphans.pop().close()
        for job in [job for job in self._scheduler.jobs if job.completion.cancelled]:
            self._finish(job, "cancelled")

    def _make_way(self) -> bool:
        """Frees slots for a sequence that left the engine; between steps only."""
        return not self._is_stepping and self._scheduler.make_way()

    # ---- what is computed

    def _compute(self, batch: list[tuple[Job, int]], interrupts: HeldInterrupts) -> None:
        try:
            with interrupts.lifted():
                outcome = self._steps.run(batch)
        except Exception as error:
            if interrupts.raised is not None:
                # A signal handler's error, not the model's: these requests go on with the next step.
                raise
            for job, _ in batch:
                self._finish(job, "error", error, poisoned=True)
            return
        for row, (job, rows) in enumerate(batch):
            try:
                self._take_in(job, rows, outcome, row)
            except Exception as error:
                self._finish(job, "error", error)
            except BaseException:
                # A lower tier's, for nothing else runs here that may raise one. Its token is lost.
                if job.kv is not None:
                    self._scheduler.preempt(job)
                raise

    def _take_in(self, job: Job, rows: int, outcome: StepOutcome, row: int) -> None:
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
            self._advance(job, rows, outcome.likeliest[row], outcome.logits[row])
            return
        self._finish(job, "error", error, poisoned=True)

    def _advance(self, job: Job, rows: int, likeliest: int, logits: torch.Tensor) -> None:
        """Commits the KV of a finite forward pass, and samples once the whole prompt has KV."""
        assert job.kv is not None
        start = job.kv.context_tokens
        job.kv.commit(job.tokens[start : start + rows])
        if job.to_compute:
            return
        completion, request = job.completion, job.completion.request
        if request.prefill_only:
            self._finish(job, "prefilled")
            return
        if job.sampler is None:
            job.sampler = Sampler(request.sampling, logits.device)
        token = likeliest if job.sampler.greedy else job.sampler.next_token(logits, job.tokens)
        job.tokens.append(token)
        completion.tokens.append(token)
        if completion.first_token_at is None:
            completion.first_token_at = time.perf_counter()
        if token in request.eos:
            self._finish(job, "stop")
        elif len(completion.tokens) >= request.max_new_tokens:
            self._finish(job, "length")

    def _finish(
        self, job: Job, reason: str, error: Exception | None = None, *, poisoned: bool = False
    ) -> None:
        """Ends a job. Gives back its memory, or hands it over after a `prefill_only` request."""
        completion = job.completion
        kv, job.kv = job.kv, None
        self._scheduler.remove(job, was_running=kv is not None)
        path = [] if kv is None else kv.path
        try:
            if kv is not None and reason == "prefilled":
                kv.hand_over(self._holders, completion.thread)
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
