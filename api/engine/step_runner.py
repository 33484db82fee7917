"""One step of the engine's sequences, by an ordinary forward pass or by replaying a captured one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrie.api.engine.decode_graphs import DecodeGraphs
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.request import Job
from kvtrie.api.models.model_identity import Digests, ModelIdentity
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.chunk_kernels import LaneSequence, prepare_step

AHEAD_TOKENS = 32
"""Where decode steps are captured: tokens for which room is reserved at once, so that plans last as long."""

Batch = Sequence[tuple[Job, int]]
"""Running jobs and how many rows each has in a step, with room reserved."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step computed, a row per sequence."""

    model: Digests
    """Of the model after the pass."""
    likeliest: list[int]
    """Tokens."""
    finite: list[bool]
    """Whether the logits are."""
    logits: Tensor
    """fp32 `[sequences, vocabulary]`; a replayed step's are overwritten by the next one's."""


class StepRunner:
    """Runs steps of one model over one memory. Its owner holds the lock.

    Args:
        memory: where KV is.
        runner: of the model.
        identity: of the model.
        graphs_for: on CUDA devices, most sequences of a captured decode step; 0 for none.
    """

    def __init__(
        self, memory: KvMemory, runner: ModelRunner, identity: ModelIdentity, graphs_for: int
    ) -> None:
        self._memory = memory
        self.runner = runner
        self._identity = identity
        self.graphs: DecodeGraphs | None = None
        if graphs_for and memory.pool.device.type == "cuda":
            self.graphs = DecodeGraphs(runner, identity, memory.pool, graphs_for)

    def run(self, batch: Batch) -> StepOutcome:
        """Computes a step's rows, writing their KV into the pool.

        Raises:
            InputError: the model has been put into training mode.
            Exception: whatever the model itself raised.
        """
        try:
            return self._replay(batch) or self._forward(batch)
        except BaseException:
            if self.graphs is not None:
                # Lanes may have gone on without their sequences.
                self.graphs.interrupted()
            raise

    def reserve_ahead(self, running: Sequence[Job]) -> None:
        """When one decoding sequence needs a slot, gives one to all that will soon need one: one new plan for many.

        Only where steps are captured; reserves what it can, and leaves the rest to the step itself.
        """
        if self.graphs is None:
            return
        decoding = [(job, job.kv) for job in running if job.kv is not None and job.to_compute == 1]
        if all(kv.room for _, kv in decoding):
            return
        for job, kv in decoding:
            left = job.completion.request.max_new_tokens - len(job.completion.tokens)
            kv.reserve(min(left, AHEAD_TOKENS))

    def _forward(self, batch: Batch) -> StepOutcome:
        """An ordinary step: any mixture of prefill and decode rows."""
        if self.graphs is not None:
            self.graphs.interrupted()
        tokens: list[int] = []
        last_rows: list[int] = []
        sequences = []
        for job, rows in batch:
            assert job.kv is not None
            start = job.kv.context_tokens
            tokens += job.tokens[start : start + rows]
            last_rows.append(len(tokens) - 1)
            sequences.append(job.kv.step_part(rows))
        step = prepare_step(sequences, self._memory.pool)
        logits = self.runner.forward(tokens, step, last_rows)
        # Compared after the pass: what changed during it counts too. On a device, while that is still busy.
        model = self._identity.digests()
        likeliest, finite = torch.stack([logits.argmax(-1), torch.isfinite(logits).all(-1).long()]).tolist()
        return StepOutcome(model, likeliest, [bool(flag) for flag in finite], logits)

    def _replay(self, batch: Batch) -> StepOutcome | None:
        """A step of decoding sequences only, from a captured graph; None where there is none for it."""
        graphs = self.graphs
        if graphs is None or any(rows > 1 or job.to_compute > 1 for job, rows in batch):
            return None
        sequences = []
        for job, _ in batch:
            assert job.kv is not None
            job.kv.begin_pass()
            sequences.append(LaneSequence(job.kv.layout, job.kv.slots, job.kv.context_tokens, job.tokens[-1]))
        output = graphs.run(sequences)
        if output is None:
            return None
        model = self._identity.digests()
        if not graphs.fits(model):
            return None
        likeliest, finite = output.read()
        graphs.chosen(likeliest)
        self._memory.counters["graph_steps"] += 1
        return StepOutcome(model, likeliest, finite, output.logits)
