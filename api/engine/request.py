"""Requests to the engine, and their completions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from kvtrie.api.engine.sampler import Sampler, Sampling, whole_number
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.prefix_tree import Node, Root
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import TokenArray, as_tokens


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete.

    Raises:
        InputError: a field is not what it must be. Nothing that a request holds can fail later for its type.
    """

    tokens: TokenArray
    """The prompt, int32 `[tokens]`, at least one. Whatever `as_tokens` takes may be passed."""
    root: Root
    """Root of the namespace that its chunks belong to."""
    readable: Sequence[Root] = ()
    """Roots of the shared scopes that it may read besides."""
    max_new_tokens: int = 128
    """Most tokens to produce, at least one; for `prefill_only` at least none."""
    eos: Collection[int] = frozenset()
    """Tokens that end the completion; they are part of it. Any collection of them may be passed."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen; default greedy."""
    prefill_only: bool = False
    """Compute the prompt's KV, all of it, and hand it over in `Completion.kv` instead of sampling."""

    def __post_init__(self) -> None:
        if not isinstance(self.prefill_only, bool):
            raise InputError(f"prefill_only must be True or False, got {self.prefill_only!r}")
        most = whole_number("max_new_tokens", self.max_new_tokens)
        least = 0 if self.prefill_only else 1
        if most < least:
            raise InputError(f"max_new_tokens must be at least {least}, got {most}")
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling must be a Sampling, got {self.sampling!r}")
        roots = [self.root, *self.readable] if isinstance(self.readable, Sequence) else [self.readable]
        for root in roots:
            if not isinstance(root, Root):
                raise InputError(f"root and readable must be roots of a tree, got {root!r}")
        # Frozen: what was passed gives way to what it means.
        object.__setattr__(self, "tokens", as_tokens(self.tokens))
        object.__setattr__(self, "max_new_tokens", most)
        object.__setattr__(self, "eos", _token_set(self.eos))


def _token_set(eos: Any) -> frozenset[int]:
    try:
        tokens = list(eos)
    except TypeError:
        raise InputError(f"eos must be a collection of token ids, e.g. {{2}}, got {eos!r}") from None
    return frozenset(whole_number("a token id in eos", token) for token in tokens)


class Completion:
    """A request under way, and its outcome. Times are seconds of `time.perf_counter`."""

    def __init__(self, request: Request, submitted_at: float) -> None:
        self.request = request
        """The request."""
        self.tokens: list[int] = []
        """New tokens so far."""
        self.cached_tokens = 0
        """Prompt tokens that were not computed for this request, as of its first admission."""
        self.finish_reason: str | None = None
        """`length`, `stop`, `prefilled`, `cancelled` or `error`; None while it runs."""
        self.error: Exception | None = None
        """The error for which the request ended; None if there was none."""
        self.kv: SequenceKV | None = None
        """The prompt's KV after a `prefill_only` request, to be closed by the caller of `submit`."""
        self.preemptions = 0
        """How often the request was preempted."""
        self.submitted_at = submitted_at
        """Time of `submit`."""
        self.thread = get_ident()
        """Thread that called `submit`: it closes `kv`, and often it is the one that waits."""
        self.first_token_at: float | None = None
        """Time of the first token; None before it."""
        self.finished_at: float | None = None
        """Time of the end; None while it runs."""
        self.cancelled = False
        """Whether `cancel` was called."""

    def cancel(self) -> None:
        """Ends the request at the next step. Whole chunks that were computed stay in the tree."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        """Whether the request has ended, in whatever way."""
        return self.finish_reason is not None

    @property
    def ttft_seconds(self) -> float:
        """Time from submission to the first token.

        Raises:
            InputError: there is no first token yet.
        """
        if self.first_token_at is None:
            raise InputError("the request has produced no token yet")
        return self.first_token_at - self.submitted_at


class Job:
    """A request's state inside the engine: waiting, then running with KV, and back when preempted."""

    __slots__ = ("awaits", "completion", "kv", "sampler", "tokens")

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.tokens: list[int] = completion.request.tokens.tolist()
        """Prompt and completion so far: what must have KV, but for the last one."""
        self.kv: SequenceKV | None = None
        self.awaits: Node | None = None
        """The chunk another request is computing for this one too."""
        self.sampler: Sampler | None = None
        """Made at the first token, and kept through preemptions, so that draws are not repeated."""

    @property
    def to_compute(self) -> int:
        """Tokens that still need KV."""
        assert self.kv is not None
        return len(self.tokens) - self.kv.context_tokens
