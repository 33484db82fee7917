"""The engine: continuous batching over shared KV.

One `step` is one forward pass over whatever needs computing: a row per decoding sequence, and as many prompt
tokens as the step's budget allows. Sequences join and leave at any step. The way of a request:

    submit -> waiting --admit: match, load, lease, claim--> running --commit, sample--> done
                 ^  \\_ waits while another request computes the same chunks (holds no slots)
                 └── preempted: memory is short, the youngest gives up its slots and starts over
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from kvtrie.api.kv_memory import KvMemory
from kvtrie.api.loading import load_missing
from kvtrie.api.model_facts import ModelFacts
from kvtrie.api.model_identity import ModelIdentity
from kvtrie.api.model_runner import ModelRunner
from kvtrie.api.request import Completion, Job, Request
from kvtrie.api.sampler import Sampler
from kvtrie.api.sequence_kv import open_sequence
from kvtrie.api.step_runner import StepRunner
from kvtrie.api.trace.watch import TrafficWatch
from kvtrie.prefix_tree.errors import InputError, ModelOutputError, PoolExhausted
from kvtrie.prefix_tree.keys import TOKEN_BYTES, TokenArray


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one step.

    Raises:
        InputError: a limit below one.
    """

    step_tokens: int = 2048
    """Most tokens computed in one step; longer prompts are prefilled in pieces."""
    max_running: int = 256
    """Most sequences in one step."""
    decode_graphs: bool = True
    """On CUDA devices, steps in which every sequence decodes replay captured graphs."""

    def __post_init__(self) -> None:
        if self.step_tokens < 1 or self.max_running < 1:
            raise InputError(f"engine limits must be at least 1, got {self}")


class Engine:
    """Runs requests over one model and one memory. Thread-safe: steps are serialised by a lock."""

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
        """Held whenever tree or pool change, and during every forward pass of the model."""
        self.watch = watch or TrafficWatch(memory.shape.chunk_tokens, "engine")
        """Told of every request that is through."""
        self._steps = StepRunner(
            memory,
            ModelRunner(facts, memory.pool, self.lock),
            identity,
            graphs_for=self.config.max_running if self.config.decode_graphs else 0,
        )
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        """Oldest first: the last one is preempted first."""
        self._is_stepping = False
        self._short = False
        """Memory ran out; nobody is admitted until someone leaves."""

    def submit(self, request: Request) -> Completion:
        """Queues a request; `step` moves it on.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, or more positions than the model has.
            PoolExhausted: prompt and completion together can never fit the pool.
        """
        if request.max_new_tokens < 1 and not request.prefill_only:
            raise InputError(f"max_new_tokens must be at least 1, got {request.max_new_tokens}")
        if len(request.tokens) or not request.prefill_only:
            self.check(request.tokens, request.max_new_tokens)
        completion = Completion(request, time.perf_counter())
        with self.lock:
            self._waiting.append(Job(completion))
            self.memory.counters["requests"] += 1
            self.memory.counters["prompt_tokens"] += len(request.tokens)
        return completion

    def check(self, tokens: TokenArray, max_new_tokens: int) -> None:
        """Whether a prompt and its completion can be run at all.

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
        """Cancels those still under way and gives back the KV of those that were prefilled."""
        for completion in completions:
            if not completion.done:
                completion.cancel()
        with self.lock:
            # Inside a step only where a garbage collection has come to a stream: the next step drops it.
            if not self._is_stepping:
                self._drop_cancelled()
            for completion in completions:
                if completion.kv is not None:
                    completion.kv.close()
                    completion.kv = None

    def cancel_all(self) -> None:
        """Cancels every request that is still under way."""
        with self.lock:
            for job in (*self._running, *self._waiting):
                job.completion.cancel()
            self._drop_cancelled()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or running."""
        return not self._waiting and not self._running

    def run(self) -> None:
        """Steps until idle."""
        while not self.idle:
            self.step()

    def wait(self, completions: list[Completion]) -> None:
        """Steps until all of these are done; others move on with them."""
        while not all(completion.done for completion in completions):
            self.step()

    def step(self) -> None:
        """One forward pass. A request that fails carries its error in its completion; others go on.

        Raises:
            Exception: whatever the model itself raised. The requests of that step end with it.
        """
        with self.lock:
            self._is_stepping = True
            try:
                self._drop_cancelled()
                self._admit()
                batch = self._gather()
                if batch:
                    self._compute(batch)
                self.memory.check_if_asked()
            finally:
                self._is_stepping = False

    # ---- who takes part

    def _drop_cancelled(self) -> None:
        for job in [job for job in (*self._running, *self._waiting) if job.completion.cancelled]:
            self._finish(job, "cancelled")

    def _admit(self) -> None:
        for job in list(self._waiting):
            if len(self._running) >= self.config.max_running or (self._short and self._running):
                return
            if job.awaits is not None and job.awaits.claim is not None:
                continue
            request = job.completion.request
            tokens = _int32le(job.tokens)
            # A hit leaves one token to compute, so that there are logits; a bare prefill needs none.
            limit = len(tokens) if request.prefill_only else len(tokens) - TOKEN_BYTES
            match = load_missing(self.memory, request.root, request.readable, tokens[:limit])
            job.awaits = match.awaits
            if match.awaits is not None:
                continue
            job.kv = open_sequence(self.memory, match, tokens)
            self._waiting.remove(job)
            self._running.append(job)
            if not job.completion.preemptions:
                job.completion.cached_tokens = job.kv.cached_tokens
                self.memory.counters["cached_tokens"] += job.kv.cached_tokens
            if job.to_compute == 0:
                self._finish(job, "prefilled")

    def _gather(self) -> list[tuple[Job, int]]:
        """Jobs and how many rows each gets, with room reserved; the youngest make way when memory is short."""
        batch: list[tuple[Job, int]] = []
        self._steps.reserve_ahead(self._running)
        # Decoding sequences come first: a long prompt must not hold up the others' next tokens.
        decoding = sum(job.to_compute == 1 for job in self._running)
        budget = max(1, self.config.step_tokens - decoding)
        for job in list(self._running):
            if job.kv is None:
                continue
            rows = min(job.to_compute, budget) if job.to_compute > 1 else 1
            if rows == 0:
                continue
            while job.kv is not None and not job.kv.reserve(rows):
                self._make_way(job)
            if job.kv is not None:
                batch.append((job, rows))
                budget -= rows if job.to_compute > 1 else 0
        return batch

    def _make_way(self, job: Job) -> None:
        youngest = self._running[-1]
        if len(self._running) > 1:
            self._preempt(youngest)
            return
        held = self.memory.tree.tiers[0].used_bytes
        self._finish(
            job,
            "error",
            PoolExhausted(
                f"no slot can be freed for a sequence of {len(job.tokens)} tokens: pins and sequences of "
                f"generate() hold the pool ({held} bytes in the tree); unpin, or raise memory="
            ),
        )

    def _preempt(self, job: Job) -> None:
        assert job.kv is not None
        job.kv.close()
        job.kv = None
        job.completion.preemptions += 1
        self.memory.counters["preemptions"] += 1
        self._running.remove(job)
        self._waiting.appendleft(job)
        self._short = True

    # ---- what is computed

    def _compute(self, batch: list[tuple[Job, int]]) -> None:
        try:
            outcome = self._steps.run(batch)
        except Exception as error:
            for job, _ in batch:
                self._finish(job, "error", error, poisoned=True)
            raise
        for row, (job, rows) in enumerate(batch):
            if not outcome.model.describe(job.completion.request.root.namespace):
                self._finish(
                    job,
                    "error",
                    InputError(
                        "the model's weights or adapters changed while this request was under way; nothing of "
                        "this step was cached. Let requests finish first, or cancel them"
                    ),
                    poisoned=True,
                )
            elif outcome.finite[row]:
                self._advance(job, rows, outcome.likeliest[row], outcome.logits[row])
            else:
                self._finish(
                    job,
                    "error",
                    ModelOutputError(
                        f"the model's logits after token {job.tokens[-1]} are not finite; nothing of this step "
                        "was cached. Check the weights and the dtype"
                    ),
                    poisoned=True,
                )

    def _advance(self, job: Job, rows: int, likeliest: int, logits: torch.Tensor) -> None:
        """Commits what a finite forward pass wrote, and samples once the whole prompt is in."""
        assert job.kv is not None
        start = job.kv.context_tokens
        job.kv.commit(job.tokens[start : start + rows])
        if job.to_compute:
            return
        completion, request = job.completion, job.completion.request
        if request.prefill_only:
            self._finish(job, "prefilled")
            return
        try:
            if job.sampler is None:
                job.sampler = Sampler(request.sampling, logits.device)
            token = likeliest if job.sampler.greedy else job.sampler.next_token(logits, job.tokens)
        except Exception as error:
            # Settings that only this row's logits show to be impossible, e.g. a temperature of 1e-40.
            self._finish(job, "error", error)
            return
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
        completion = job.completion
        if job.kv is not None:
            self.watch.completed(completion, job.kv.path)
            if reason == "prefilled":
                completion.kv = job.kv
            else:
                job.kv.close(poisoned=poisoned)
            job.kv = None
            self._running.remove(job)
            self._short = False
        else:
            self._waiting.remove(job)
        completion.error = error
        completion.finish_reason = reason
        completion.finished_at = time.perf_counter()


def _int32le(tokens: list[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()
