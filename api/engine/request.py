"""Requests to the engine, and their completions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from kvtrie.api.engine.sampler import Sampler
from kvtrie.api.engine.sampling.checked_numbers import flag, token_set, whole_number
from kvtrie.api.engine.sampling.choose import Choice
from kvtrie.api.engine.sampling.grammar import GrammarState
from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.engine.sampling.stop_strings import StoppedText
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
    """Namespace its chunks belong to."""
    readable: Sequence[Root] = ()
    """Shared scopes it may read besides."""
    max_new_tokens: int = 128
    eos: Collection[int] = frozenset()
    """Tokens that end the completion; they are part of it. Any collection of them may be passed."""
    sampling: Sampling = field(default_factory=Sampling)
    prefill_only: bool = False
    """Compute the prompt's KV, all of it, and hand it over in `Completion.kv` instead of sampling."""
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
        # Frozen: what was passed gives way to what it means.
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
    """A request under way, and its outcome. Times are `time.perf_counter` seconds."""

    def __init__(self, request: Request, submitted_at: float) -> None:
        self.request = request
        self.tokens: list[int] = []
        """New tokens so far."""
        self.logprobs: list[ChosenLogprobs] = []
        """Of each new token, where `Sampling.logprobs` is set."""
        self.texts: list[str] = []
        """Pieces of text that are decided, where the request has a tokenizer. No stop string, nor the beginning
        of one, is among them while it may still end the completion."""
        self.stopped_by: int | str | None = None
        """The token or the string that ended the completion with finish reason `stop`."""
        self.cached_tokens = 0
        """Prompt tokens that were not computed for this request, as of its first admission."""
        self.finish_reason: str | None = None
        """`length`, `stop`, `prefilled`, `cancelled` or `error`; None while it runs."""
        self.error: Exception | None = None
        self.kv: SequenceKV | None = None
        """The prompt's KV after a `prefill_only` request; whoever asked closes it."""
        self.preemptions = 0
        self.submitted_at = submitted_at
        self.thread = get_ident()
        """Of whoever asks: it is the one that closes `kv`, and often the one that waits."""
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Asks for an end at the next step; what was computed until then stays cached."""
        self.cancelled = True

    @property
    def text(self) -> str:
        """The completion's text so far, where the request has a tokenizer, else empty. Without tokens that
        ended it."""
        return "".join(self.texts)

    @property
    def done(self) -> bool:
        """Whether it has an outcome."""
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

    __slots__ = ("awaits", "completion", "grammar", "kv", "sampler", "text", "tokens")

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self.tokens: list[int] = completion.request.tokens.tolist()
        """Prompt and completion so far: what must have KV, but for the last one."""
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

    def take(self, choice: Choice) -> str | None:
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
    def to_compute(self) -> int:
        """Tokens that still need KV."""
        assert self.kv is not None
        return len(self.tokens) - self.kv.context_tokens
