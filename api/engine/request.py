"""Requests to the engine, and their completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from threading import Event, get_ident
from typing import Any

import numpy as np

from kvtrie.api.engine.completion_events import OnceCallbacks, TokenCallback
from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.checked_numbers import flag, token_set, whole_number
from kvtrie.api.engine.sampling.choose import ChosenToken
from kvtrie.api.engine.sampling.grammar import GrammarState
from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.engine.sampling.stop_strings import StoppedText
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.api.engine.token_iterator import TokenIterator
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
    """Compute the prompt's KV, all of it, and hand it over in `Completion.kv` instead of sampling. Admission counts
    `max_new_tokens` more tokens."""
    priority: int = 0
    """Requests of smaller numbers are admitted first among those of their scope."""
    deadline_seconds: float | None = None
    """From submission; a request that is not done by then ends as `expired`. None for no end."""
    request_id: str | None = None
    """A name for `Engine.abort`; several requests may have the same one."""
    stop: Sequence[str] = ()
    """Strings that end the completion at the token that completes one of them. `Completion.text` ends before
    it."""
    include_stop: bool = False
    """`Completion.text` ends with the string that ended it."""
    tokenizer: Any = None
    """Decodes the completion where `stop` is given, and spells the tokens for `Sampling.constraint`. Where it is
    given, `Completion.text` is computed."""

    def __post_init__(self) -> None:
        flag("prefill_only", self.prefill_only)
        flag("include_stop", self.include_stop)
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
        deadline = self.deadline_seconds
        if deadline is not None:
            if isinstance(deadline, bool) or not isinstance(deadline, Real) or not isfinite(deadline):
                raise InputError(f"deadline_seconds must be a finite number, got {deadline!r}")
            if deadline <= 0:
                raise InputError(f"deadline_seconds must be above 0, got {deadline!r}")
        if self.request_id is not None and (not isinstance(self.request_id, str) or not self.request_id):
            raise InputError(f"request_id must be a string that is not empty, got {self.request_id!r}")
        # Frozen: what was passed gives way to what it means.
        object.__setattr__(self, "priority", whole_number("priority", self.priority))
        object.__setattr__(self, "tokens", as_tokens(self.tokens))
        object.__setattr__(self, "max_new_tokens", most)
        object.__setattr__(self, "eos", token_set("eos", self.eos))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        needs = "stop strings need" if self.stop else "a constraint needs" if self.sampling.constraint else ""
        if needs and self.tokenizer is None:
            raise InputError(f"{needs} a tokenizer; pass one with the request, or to the wrapper")

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end the completion."""
        stops = frozenset(self.sampling.stop_token_ids)
        return stops if self.sampling.ignore_eos else stops | frozenset(self.eos)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(string, str) and string for string in strings):
        raise InputError(f"stop must be strings of at least one character, got {stop!r}")
    return tuple(dict.fromkeys(strings))


class Completion:
    """A request under way, and its outcome. Times are seconds of `time.perf_counter`.

    In asyncio, `async for token in completion` yields each token when it is computed, raises the error of a request
    that failed, and cancels the request if the loop is left early.

    Args:
        request: the request.
        submitted_at: when it was submitted.
        expires_at: when it ends as `expired`, by the engine's clock; None for never.
        cancels: queue of the engine, to which `cancel` appends the completion.
    """

    def __init__(
        self,
        request: Request,
        submitted_at: float,
        expires_at: float | None = None,
        cancels: deque[Completion] | None = None,
    ) -> None:
        self.request = request
        """The request."""
        self.tokens: list[int] = []
        """New tokens so far."""
        self.logprobs: list[ChosenLogprobs] = []
        """Log probabilities of each new token, if `Sampling.logprobs` is set."""
        self.texts: list[str] = []
        """Pieces of text that are decided, where the request has a tokenizer. No stop string, nor the beginning
        of one, is among them while it may still end the completion."""
        self.stopped_by: int | str | None = None
        """The token or the string that ended the completion with finish reason `stop`."""
        self.cached_tokens = 0
        """Prompt tokens that were not computed for this request, as of its first admission."""
        self.finish_reason: str | None = None
        """`length`, `stop`, `prefilled`, `cancelled`, `expired` or `error`; None while it runs."""
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
        self.admitted_at: float | None = None
        """Time of the first admission; None before it."""
        self.first_token_at: float | None = None
        """Time of the first token; None before it."""
        self.finished_at: float | None = None
        """Time of the end; None while it runs."""
        self.cancelled = False
        self.expires_at = expires_at
        self.cancels = cancels
        """Queue to which `cancel` appends this completion; the engine that runs the request reads it."""
        self.ended = OnceCallbacks()
        """Called once there is an outcome: see `add_done_callback`."""
        self._token_callbacks: list[TokenCallback] = []

    def cancel(self) -> None:
        """Ends the request at the next step. Whole chunks that were computed stay in the tree. Takes no lock."""
        if not self.cancelled:
            self.cancelled = True
            if self.cancels is not None:
                self.cancels.append(self)

    # ---- hearing of it

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is done: by steps of another thread, e.g. an `EngineLoop`. This makes none.

        Args:
            timeout: seconds; None for no end.

        Returns:
            Whether it is done.
        """
        done = Event()
        self.ended.add(done.set)
        try:
            return done.wait(timeout)
        finally:
            self.ended.discard(done.set)

    def add_done_callback(self, function: Callable[[Completion], object]) -> None:
        """Has `function` called with this completion once it is done; at once, if it is.

        In the thread that steps, under the engine's lock: it must be quick. What it raises is logged.
        """
        self.ended.add(lambda: function(self))

    def add_token_callback(self, function: Callable[[list[int]], object]) -> TokenCallback:
        """Has `function` called with new tokens after each step that brought any, first with those there are.

        In the thread that steps, as for `add_done_callback`, and always before it.

        Returns:
            What `discard_token_callback` takes.
        """
        callback = TokenCallback(function, self.tokens)
        self._token_callbacks.append(callback)
        if self.done:
            callback.call()
        return callback

    def discard_token_callback(self, callback: TokenCallback) -> None:
        """Takes back what `add_token_callback` added."""
        self._token_callbacks.remove(callback)

    def __aiter__(self) -> TokenIterator:
        return TokenIterator(self)

    @property
    def is_listened_to(self) -> bool:
        """Whether `tell` would call anything before it is done."""
        return bool(self._token_callbacks)

    def tell(self) -> None:
        """The engine's: calls those who want to hear of new tokens or of the outcome."""
        for callback in list(self._token_callbacks):
            callback.call()
        if self.done:
            self.ended.call()

    @property
    def text(self) -> str:
        """The completion's text so far, where the request has a tokenizer, else empty. Without tokens that
        ended it."""
        return "".join(self.texts)

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

    __slots__ = (
        "_tokens",
        "awaits",
        "blocked_at",
        "completion",
        "grammar",
        "kv",
        "number",
        "priority",
        "promised",
        "sampler",
        "scope",
        "text",
        "weight_tokens",
    )

    def __init__(self, completion: Completion, number: int) -> None:
        request = completion.request
        self.completion = completion
        self.number = number
        """Counts arrivals."""
        self.scope = request.root.scope
        self.priority = request.priority
        self.weight_tokens = len(request.tokens) + request.max_new_tokens
        """What it may cost at most: all of the prompt, and all new tokens."""
        self.promised = 0
        """Chunks it was to need when it was admitted, shared ones that were there left out."""
        self.blocked_at: tuple[int, int] | None = None
        """What was held when it found no room."""
        self._tokens: list[int] | None = None
        self.kv: SequenceKV | None = None
        self.awaits: Node | None = None
        """The chunk another request is computing for this one too."""
        self.sampler: Sampler | None = None
        """Made at the first token; it survives preemption, so that draws are not repeated."""
        self.grammar: GrammarState | None = None
        """Of the request's constraint."""
        self.text: StoppedText | None = None
        """Made with the sampler, where the request has a tokenizer."""

    def start_sampling(self) -> Sampler:
        """The sampler, made where there is none yet."""
        if self.sampler is None:
            request = self.completion.request
            if request.tokenizer is not None:
                self.text = StoppedText(
                    request.tokenizer,
                    request.tokens.tolist(),
                    request.stop,
                    request.include_stop,
                    request.sampling.min_tokens,
                )
            self.sampler = Sampler(request.sampling, request.tokens, request.ends, self.grammar)
        return self.sampler

    def take(self, choice: ChosenToken) -> str | None:
        """Adds a token to the completion, and says for which reason it ends with it: None where it does not."""
        assert self.sampler is not None
        completion, request, token = self.completion, self.completion.request, choice.token
        self.sampler.accept(token)
        is_end = token in request.ends and self.sampler.drawn > request.sampling.min_tokens
        if self.text is not None and not is_end and (piece := self.text.add(token)):
            completion.texts.append(piece)
        self.tokens.append(token)
        completion.tokens.append(token)
        if choice.logprobs is not None:
            completion.logprobs.append(choice.logprobs)
        if is_end:
            completion.stopped_by = token
        elif self.text is not None and self.text.stopped_by is not None:
            completion.stopped_by = self.text.stopped_by
        elif not self.sampler.is_complete and len(completion.tokens) < request.max_new_tokens:
            return None
        if self.text is not None and (rest := self.text.finish()):
            completion.texts.append(rest)
        return "stop" if completion.stopped_by is not None or self.sampler.is_complete else "length"

    @property
    def tokens(self) -> list[int]:
        """Prompt and completion so far: what must have KV, but for the last one."""
        if self._tokens is None:
            # Only once it runs: a list takes ten times as long to make as the request takes to queue.
            self._tokens = self.completion.request.tokens.tolist()
        return self._tokens

    @property
    def token_bytes(self) -> bytes:
        """`tokens` as int32le."""
        new = np.asarray(self.completion.tokens, np.int32)
        return self.completion.request.tokens.tobytes() + new.tobytes()

    @property
    def to_compute(self) -> int:
        """Tokens that still need KV."""
        assert self.kv is not None
        return len(self.tokens) - self.kv.context_tokens
