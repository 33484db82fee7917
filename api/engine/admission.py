"""Admission by memory: how many chunks a request will need, and whether they fit beside what others will need.

A request is *sure to need* the chunks of its prompt that are not cached, and those of its answer. An answer that
nothing may end early has `max_new_tokens` tokens. One that an end token may end is expected to be about as long as
the answers before it were: `max_new_tokens` is often the largest number a model allows, and with so much put by
for each only a few would run; with nothing put by, as many as fit by their prompts would be admitted, and preempt
each other as their answers grow. An expectation that proves too low costs a preemption, after which sequences are
admitted one for one until that has gone well for a while (`scheduler.py`).

Others, for comparison: vLLM puts nothing by (a small watermark) and preempts; SGLang puts by a part of
`max_new_tokens` which shrinks while all goes well and is set back by a preemption.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtrie.api.engine.kv_memory import DEVICE, KvMemory
from kvtrie.api.engine.request import Job, Request
from kvtrie.prefix_tree import Match, Node

_FIRST_GUESS_TOKENS = 256.0
"""An answer that may end early is expected to be so long before there has been any. Chats' answers mostly are."""
_WEIGHT = 1 / 16
"""Of the latest answer in the moving averages."""


class AnswerLengths:
    """Learns how long answers are that an end token may end: a moving average, and one of the distance from it."""

    def __init__(self) -> None:
        self._mean = _FIRST_GUESS_TOKENS
        self._distance = 0.0

    def ended(self, request: Request, tokens: int) -> None:
        """Takes in an answer of so many tokens that came to its own end."""
        if _may_end_early(request):
            off = tokens - self._mean
            self._mean += _WEIGHT * off
            self._distance += _WEIGHT * (abs(off) - self._distance)

    def expected(self, request: Request, so_far: int, least: int) -> int:
        """Tokens of an answer: at least `least` more than it has so far, and never above `max_new_tokens`."""
        if not _may_end_early(request):
            return request.max_new_tokens
        usual = int(self._mean + self._distance)
        return min(request.max_new_tokens, max(usual, so_far + least))


def _may_end_early(request: Request) -> bool:
    return bool(request.eos) and not request.prefill_only


class Needs:
    """Chunks that jobs will need, shared ones included."""

    def __init__(self, memory: KvMemory) -> None:
        self._chunk_tokens = memory.shape.chunk_tokens
        self.lengths = AnswerLengths()

    def chunks(self, job: Job) -> int:
        """Chunks that a job will have when it is done."""
        request, so_far = job.completion.request, len(job.completion.tokens)
        answer = self.lengths.expected(request, so_far, self._chunk_tokens)
        # A token that nothing follows needs no KV. What is prefilled only is gone on with elsewhere, with one more
        # token of the prompt.
        tokens = len(request.tokens) + answer - (not request.prefill_only)
        return -(-tokens // self._chunk_tokens)

    def to_come(self, job: Job) -> int:
        """Chunks that a running job will need beyond those that it has."""
        return 0 if job.kv is None else max(0, self.chunks(job) - len(job.kv.slots))


class Room:
    """Chunks that can still be promised, at one moment. It is exact at first, and as jobs are admitted.

    Args:
        memory: holds the chunks; nothing but admissions may change it.
        promised: chunks that are promised to those who run, and that they have not taken yet.
    """

    def __init__(self, memory: KvMemory, promised: int) -> None:
        self._memory = memory
        self._promised = promised
        tree = memory.tree
        self._most_held = sum(hold.node.depth for holds in (tree.leases, tree.pins) for hold in holds)
        """Chunks under leases and pins, shared ones counted once for each who shares them."""
        self._held: set[Node] | None = None
        """Chunks under leases and pins; None until it is worth looking."""

    def lacks(self, match: Match, chunks: int) -> int:
        """How many chunks too few there are for a job that has `match` and needs so many in all; 0 if it fits."""
        needed = chunks - len(match.path)
        if self._held is None:
            if needed + len(match.path) <= self._not_taken() - self._most_held - self._promised:
                # With shared chunks counted once it fits even more.
                return 0
            self._held = self._memory.tree.held_nodes(DEVICE)
        newly_held = sum(node not in self._held for node in match.path)
        return max(0, needed + newly_held - (self._not_taken() - len(self._held) - self._promised))

    def promise(self, path: Sequence[Node], chunks: int) -> None:
        """Notes a job that was just admitted: the shared chunks that it holds, and those it has yet to take."""
        self._promised += chunks
        self._most_held += len(path)
        if self._held is not None:
            self._held.update(path)

    def _not_taken(self) -> int:
        """Slots that are free or hold chunks of the tree, held ones included."""
        tier = self._memory.tree.tiers[DEVICE]
        return self._memory.pool.slots - tier.pending_bytes // self._memory.shape.chunk_bytes
