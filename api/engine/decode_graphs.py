"""Decode steps as CUDA graphs: captured once per number of lanes, replayed for any plan within capacity.

A captured step takes its tokens and positions from `DecodeLanes` on the device, runs the model, picks each lane's
likeliest token and puts it back into the lane. So in a steady step of greedy sequences the host sends nothing and
reads one small tensor: which tokens, and whether the logits were finite.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kvtrie.api.models.model_identity import Digests, ModelIdentity
from kvtrie.api.models.model_runner import ModelRunner
from kvtrie.chunk_kernels import ChunkPool, DecodeLanes, LaneSequence
from kvtrie.chunk_kernels.tilings import cost_model_for, tilings_of

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]

WORTH_STEPS = 32
"""A graph of exactly a step's size is captured only after this many steps had to use a larger one, because a
capture takes as long as some tens of steps."""

_log = logging.getLogger(__name__)


class CudaCapture:
    """Captures device work as a CUDA graph; all graphs share one memory pool, as only one runs at a time."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()
        # cuBLAS keeps a workspace per stream, so the streams are kept. The capture stream's workspace must be in
        # the graphs' memory pool and the warm-up stream's must not, so there are two streams.
        self._warm_up_on: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured_on: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], None]) -> Replay:
        """Runs `work`, so that its kernels are compiled, then captures it.

        Raises:
            RuntimeError: something in `work` cannot be captured.
        """
        here = torch.cuda.current_stream()
        self._warm_up_on.wait_stream(here)
        try:
            with torch.cuda.stream(self._warm_up_on):
                work()
                # Finds what cannot be captured before the capture: torch's allocator does not recover from a failed
                # one.
                with _waiting_refused():
                    work()
        finally:
            here.wait_stream(self._warm_up_on)
        graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(
            graph, pool=self._memory, stream=self._captured_on, capture_error_mode="thread_local"
        )
        # If the capture fails, `torch.cuda.graph` does not restore the stream; the outer context does.
        with torch.cuda.stream(here), captured:
            work()
        replay: Replay = graph.replay
        return replay


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Makes every operation that waits for the device raise RuntimeError, in all threads."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # Torch warns once that the mode is a prototype.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class DecodeOutput:
    """Tokens and logits of one step; `read` waits for the device."""

    def __init__(self, picks: Tensor, logits: Tensor, count: int) -> None:
        self._picks = picks
        self.logits = logits[:count]
        """fp32 `[sequences, vocabulary]`; overwritten by the next step."""
        self._count = count

    def read(self) -> tuple[list[int], list[bool]]:
        """Each sequence's likeliest token, and whether its logits are finite."""
        tokens, finite = self._picks[:, : self._count].tolist()
        return tokens, [bool(flag) for flag in finite]


class _Bucket:
    """Lanes for steps of up to `lanes.lanes` sequences, and their graphs: one with shared work, one without."""

    def __init__(self, lanes: DecodeLanes) -> None:
        self.lanes = lanes
        self.replays: dict[bool, Replay] = {}
        self.logits: dict[bool, Tensor] = {}
        self.picks = torch.zeros(2, lanes.lanes, dtype=torch.int64, device=lanes.pool.device)


class DecodeGraphs:
    """Runs decode steps of one model over one pool by replaying captured ones.

    Args:
        runner: of the model.
        identity: of the model; graphs of another model are dropped.
        pool: holds the KV.
        most: most sequences of a step.
        capture: turns work into a replay of it; tests pass one whose replay runs the work again.
    """

    def __init__(
        self,
        runner: ModelRunner,
        identity: ModelIdentity,
        pool: ChunkPool,
        most: int,
        capture: Capture | None = None,
    ) -> None:
        self._runner = runner
        self._identity = identity
        self._pool = pool
        self._most = most
        self._capture = capture
        self._buckets: dict[int, _Bucket] = {}
        self._latest: _Bucket | None = None
        self._wanted: Counter[tuple[int, bool]] = Counter()
        """Steps that found no graph, by number of lanes and whether there is shared work."""
        self._kept: list[Tensor] = []
        """Tensors that captured graphs read, kept alive as long as the graphs, whatever the caller does to the
        model."""
        self._made_for: Digests | None = None
        self.refused: str | None = None
        """Reason why no more steps are captured; None while they are."""

    def interrupted(self) -> None:
        """Notes that an ordinary step has run: the lanes' tokens and positions are out of date."""
        self._latest = None

    def fits(self, model: Digests) -> bool:
        """Whether graphs were captured from the model as it is now; drops them if not."""
        if self._made_for != model:
            self._drop()
        return self._made_for == model

    def _drop(self) -> None:
        self._buckets.clear()
        self._wanted.clear()
        self._latest = self._made_for = None
        self._kept = []
        if isinstance(self._capture, CudaCapture):
            # Its memory pool takes no new graph once all its graphs have been dropped.
            self._capture = None

    def run(self, sequences: Sequence[LaneSequence]) -> DecodeOutput | None:
        """Runs one step; None (nothing done) if these sequences need an ordinary step."""
        # 1. Lanes for these sequences: only appended tokens are in them already.
        if self.refused is not None or len(sequences) > self._most or self._runner.facts.model.training:
            return None
        bucket = self._bucket(len(sequences))
        lanes = bucket.lanes
        if bucket is not self._latest:
            lanes.forget()
            self._latest = bucket
        if not lanes.update(sequences):
            self._latest = None
            return None
        # 2. The graph, for plans with or without shared work. While few steps have wanted the one without, the one
        # with it runs them, too.
        shares = lanes.has_partials
        if shares not in bucket.replays and True in bucket.replays and self._may_wait(lanes.lanes, False):
            # A graph with both launches runs any plan.
            shares = True
        # 3. Capture it if it is not there.
        if shares not in bucket.replays:
            if self._made_for is not None and not self.fits(self._identity.digests()):
                # Beside a new graph, graphs of another model would be taken for this model's.
                return None
            lanes.clear()
            if not self._captured(bucket, shares):
                return None
            lanes.update(sequences)
        # 4. Replay.
        bucket.replays[shares]()
        return DecodeOutput(bucket.picks, bucket.logits[shares], len(sequences))

    def chosen(self, tokens: list[int]) -> None:
        """Notes the tokens of the step just read, which the device has put into its lanes already."""
        if self._latest is not None:
            self._latest.lanes.advanced(tokens)

    def _bucket(self, count: int) -> _Bucket:
        size = 1 << (count - 1).bit_length()
        captured = [size for size, bucket in self._buckets.items() if bucket.replays]
        wider = [lanes for lanes in captured if lanes > size]
        if size not in captured and wider and self._may_wait(size, True):
            size = min(wider)
        if size not in self._buckets:
            facts = self._runner.facts
            group = facts.config.num_attention_heads // facts.kv_heads
            tilings = tilings_of(self._pool, size, 1, group)
            # Tensors made in a caller's inference mode could not be written after it, and the lanes outlive it.
            with torch.inference_mode(False):
                lanes = DecodeLanes(self._pool, size, group, tilings, cost_model_for(self._pool.device))
                self._buckets[size] = _Bucket(lanes)
        return self._buckets[size]

    def _may_wait(self, lanes: int, shares: bool) -> bool:
        """Whether a step can use another graph for now, because too few steps have wanted one of exactly this
        kind."""
        self._wanted[lanes, shares] += 1
        return self._wanted[lanes, shares] < WORTH_STEPS

    def _captured(self, bucket: _Bucket, shares: bool) -> bool:
        lanes = bucket.lanes
        launch = lanes.launch if shares else lanes.launch_unshared

        def work() -> None:
            lanes.begin()
            logits = self._runner.forward_lanes(lanes, launch)
            bucket.logits[shares] = logits
            bucket.picks[0].copy_(logits.argmax(-1))
            bucket.picks[1].copy_(torch.isfinite(logits).all(-1))
            lanes.advance(bucket.picks[0])

        try:
            # A graph is captured on the current device, which need not be the pool's.
            with torch.inference_mode(), torch.cuda.device_of(self._pool.k):  # type: ignore[no-untyped-call]
                if self._capture is None:
                    self._capture = CudaCapture()
                bucket.replays[shares] = self._capture(work)
        except RuntimeError as error:
            # The forward waits for the device, or branches on values. Without graphs it is slower, not wrong.
            self.refused = f"{type(error).__name__}: {error}".splitlines()[0]
            self._drop()
            _log.warning("decode steps run without CUDA graphs: %s", self.refused)
            return False
        self._made_for = self._identity.digests()
        model = self._runner.facts.model
        self._kept = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        return True
