"""What a request may ask of its tokens' choice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf

from kvtrie.api.engine.sampling.checked_numbers import (
    finite_number,
    flag,
    number_within,
    token_set,
    whole_number,
)
from kvtrie.api.engine.sampling.constraint import JsonSchema, Regex
from kvtrie.prefix_tree.errors import InputError

MOST_LOGPROBS = 20
"""Most tokens whose log probabilities are reported at each place, as OpenAI's API has it."""

_SEEDS = range(-(1 << 63), 1 << 64)
"""Range of seeds of `torch.Generator.manual_seed`, which Hugging Face's users know."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Applied in this order, which is Hugging Face's:

    logit_bias, repetition_penalty, frequency_penalty, presence_penalty, min_tokens, constraint; and where the
    temperature is above 0: temperature, top_k, top_p, min_p, a draw.

    Raises:
        InputError: a value out of range, or of another type.
    """

    temperature: float = 0.0
    """0 is greedy: the likeliest token after penalties, bias and constraint."""
    top_k: int = 0
    """Tokens less likely than the k-th likeliest are not drawn; ties with it are. 0 is off."""
    top_p: float = 1.0
    """The least likely tokens, of together at most 1 - top_p, are not drawn. 1 is off."""
    seed: int | None = None
    """Makes the choice repeatable, whatever else is in the batch; None draws a fresh one."""
    min_p: float = 0.0
    """Tokens less than min_p times as likely as the likeliest are not drawn. 0 is off."""
    repetition_penalty: float = 1.0
    """Hugging Face's: positive logits of tokens of the prompt and the completion are divided by it, negative ones
    multiplied. Above 0; 1 is off."""
    presence_penalty: float = 0.0
    """OpenAI's: subtracted from the logits of the tokens of the completion. From -2 to 2; 0 is off."""
    frequency_penalty: float = 0.0
    """OpenAI's: subtracted from the logits of the tokens of the completion, once for each time that they occur
    in it. From -2 to 2; 0 is off."""
    logit_bias: Mapping[int, float] | Collection[tuple[int, float]] = ()
    """Added to the logits of these tokens; -inf forbids one. Kept as pairs in the order of the tokens."""
    logprobs: int | None = None
    """How many of the likeliest tokens `Completion.logprobs` has besides the chosen one, 0 to 20; None: no log
    probabilities. They are of the model's own distribution, before everything in this class, as vLLM's are."""
    stop_token_ids: Collection[int] = frozenset()
    """Tokens that end the completion, besides the request's `eos`, also where `ignore_eos` is set."""
    ignore_eos: bool = False
    """The request's `eos` does not end the completion."""
    min_tokens: int = 0
    """No token, and no stop string, ends the completion before it has so many tokens."""
    constraint: JsonSchema | Regex | None = None
    """What the completion's text must match. Needs the request's tokenizer."""

    def __post_init__(self) -> None:
        temperature = finite_number("temperature", self.temperature)
        top_k = whole_number("top_k", self.top_k)
        top_p = finite_number("top_p", self.top_p)
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            raise InputError(
                f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self.temperature}, "
                f"{self.top_k} and {self.top_p}"
            )
        repetition = finite_number("repetition_penalty", self.repetition_penalty)
        if repetition <= 0:
            raise InputError(f"repetition_penalty must be above 0, got {self.repetition_penalty!r}")
        checked: dict[str, object] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": number_within("min_p", self.min_p, 0, 1),
            "repetition_penalty": repetition,
            "presence_penalty": number_within("presence_penalty", self.presence_penalty, -2, 2),
            "frequency_penalty": number_within("frequency_penalty", self.frequency_penalty, -2, 2),
            "logit_bias": _biases(self.logit_bias),
            "stop_token_ids": token_set("stop_token_ids", self.stop_token_ids),
            "ignore_eos": flag("ignore_eos", self.ignore_eos),
            "min_tokens": _at_least_0("min_tokens", self.min_tokens),
        }
        if self.seed is not None:
            seed = whole_number("seed", self.seed)
            if seed not in _SEEDS:
                raise InputError(f"seed must be within {_SEEDS.start} and {_SEEDS.stop - 1}, got {seed}")
            checked["seed"] = seed
        if self.logprobs is not None:
            logprobs = whole_number("logprobs", self.logprobs)
            if not 0 <= logprobs <= MOST_LOGPROBS:
                raise InputError(
                    f"logprobs must be from 0 to {MOST_LOGPROBS}, or None, got {self.logprobs!r}"
                )
            checked["logprobs"] = logprobs
        self._check_constraint()
        # Frozen: what was passed gives way to what it means.
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _check_constraint(self) -> None:
        if self.constraint is None:
            return
        if not isinstance(self.constraint, (JsonSchema, Regex)):
            raise InputError(f"constraint must be a JsonSchema or a Regex, got {self.constraint!r}")
        if self.ignore_eos or self.min_tokens:
            raise InputError(
                "a constraint says itself where the completion may end; leave out ignore_eos and min_tokens"
            )

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as it is kept."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias

    def check_vocabulary(self, vocabulary: int) -> None:
        """Compares token ids with a model's vocabulary.

        Raises:
            InputError: a token of `logit_bias` or `stop_token_ids` is outside of it.
        """
        biased = [token for token, _ in self.biases]
        for name, tokens in ("logit_bias", biased), ("stop_token_ids", self.stop_token_ids):
            for token in tokens:
                if not 0 <= token < vocabulary:
                    raise InputError(f"token id {token} in {name} is outside the vocabulary of {vocabulary}")


def _at_least_0(name: str, value: object) -> int:
    number = whole_number(name, value)
    if number < 0:
        raise InputError(f"{name} must be at least 0, got {number}")
    return number


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    if not isinstance(pairs, Iterable) or isinstance(pairs, (str, bytes)):
        raise InputError(f"logit_bias must map token ids to numbers, e.g. {{50256: -100}}, got {given!r}")
    found: dict[int, float] = {}
    for pair in pairs:
        try:
            token, bias = pair
        except (TypeError, ValueError):
            raise InputError(f"logit_bias must map token ids to numbers, got {pair!r} in it") from None
        place = whole_number("a token id in logit_bias", token)
        found[place] = -inf if bias == -inf else finite_number(f"the bias of token {place}", bias)
    return tuple(sorted(found.items()))
