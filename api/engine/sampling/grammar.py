"""Matchers of constraints: which tokens may come next."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kvtrie.api.engine.sampling.constraint import JsonSchema, Regex, first_sentence, llguidance
from kvtrie.prefix_tree.errors import InputError, ModelOutputError

_WORD_BITS = 32


class GrammarState:
    """Where one completion is in its constraint's grammar. Belongs to one request.

    Args:
        matcher: llguidance's, at the beginning.
        vocabulary: of the tokenizer that the matcher was made with.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._words = -(-vocabulary // _WORD_BITS)

    def mask(self) -> NDArray[np.uint8]:
        """Which tokens may come next, a bit each, the lowest first: `[vocabulary / 8]`.

        Raises:
            ModelOutputError: the grammar exceeds llguidance's limits here.
        """
        words = np.zeros(self._words, np.int32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        return words.view(np.uint8)

    def accept(self, token: int) -> None:
        """Moves on by one token.

        Raises:
            ModelOutputError: it is none that may come next.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelOutputError(f"the constraint failed: {first_sentence(self._matcher.get_error())}")


class Grammars:
    """Opens constraints; keeps what is made once per tokenizer, which takes up to a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizers: WeakKeyDictionary[Any, dict[tuple[int, frozenset[int]], Any]] = WeakKeyDictionary()

    def open(
        self, constraint: JsonSchema | Regex, tokenizer: Any, vocabulary: int, eos: Collection[int]
    ) -> GrammarState:
        """The state at the beginning of a completion.

        Args:
            constraint: what the completion's text must match.
            tokenizer: a fast one of transformers.
            vocabulary: how many logits the model has.
            eos: tokens that end the completion once the constraint is met.

        Raises:
            InputError: the tokenizer is of another kind, no token ends the completion, or the grammar is too
                large.
        """
        if not eos:
            raise InputError("a constraint needs a token that ends the completion; pass eos=")
        with self._lock:
            found = self._tokenizers.setdefault(tokenizer, {})
            key = vocabulary, frozenset(eos)
            if key not in found:
                found[key] = _opened(tokenizer, vocabulary, sorted(eos))
            own = found[key]
        matcher = llguidance().LLMatcher(own, constraint.grammar(), log_level=0)
        if matcher.is_error():
            raise InputError(f"the constraint cannot be enforced: {first_sentence(matcher.get_error())}")
        return GrammarState(matcher, own.vocab_size)


def _opened(tokenizer: Any, vocabulary: int, eos: list[int]) -> Any:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"a constraint needs a fast tokenizer of transformers, got {type(tokenizer).__name__}; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    from llguidance.hf import from_tokenizer

    try:
        # A model may have fewer logits than its tokenizer has tokens, or more.
        return from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=eos)
    except Exception as error:
        raise InputError(f"llguidance cannot read this tokenizer: {error}") from error
