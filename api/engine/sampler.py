"""One request's sampling, and what it has drawn so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from kvtrie.api.engine.sampling.checked_numbers import whole_number
from kvtrie.api.engine.sampling.grammar import GrammarState
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.engine.sampling.token_counts import TokenCounts
from kvtrie.api.engine.sampling.uniforms import fresh_seed, uniform

__all__ = ["Sampler", "Sampling", "whole_number"]


class Sampler:
    """State of one request's sampling. It survives preemption, and depends on nothing else in a batch.

    Args:
        sampling: what the request asks for.
        prompt: its token ids.
        ends: tokens that end its completion.
        grammar: of its constraint, at the beginning of the text.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] | NDArray[np.int32] = (),
        ends: Collection[int] = frozenset(),
        grammar: GrammarState | None = None,
    ) -> None:
        self.sampling = sampling
        self.ends = frozenset(ends)
        self.grammar = grammar
        self.drawn = 0
        """Tokens of the completion so far."""
        self.counts: TokenCounts | None = None
        """Kept where a penalty is asked for."""
        repeats = sampling.repetition_penalty != 1
        if repeats or sampling.presence_penalty or sampling.frequency_penalty:
            self.counts = TokenCounts(prompt, with_prompt=repeats)
        self._seed = fresh_seed() if sampling.seed is None else sampling.seed

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature == 0

    @property
    def forbidden(self) -> frozenset[int]:
        """Tokens that may not be chosen yet, for they would end the completion."""
        return self.ends if self.drawn < self.sampling.min_tokens else frozenset()

    @property
    def changes_logits(self) -> bool:
        """Whether the next token need not be the model's likeliest, though it is chosen greedily."""
        return bool(
            self.sampling.biases
            or (self.counts is not None and len(self.counts.tokens))
            or self.forbidden
            or self.grammar is not None
        )

    @property
    def is_complete(self) -> bool:
        """Whether the constraint admits no further token."""
        return self.grammar is not None and self.grammar.is_complete

    def uniform(self, attempt: int = 0) -> float:
        """The random number of `[0, 1)` for the next token, and for further draws where it takes several."""
        return uniform(self._seed, self.drawn, attempt)

    def accept(self, token: int) -> None:
        """Notes that `token` is the next one.

        Raises:
            ModelOutputError: the constraint does not admit it, or has become too complex.
        """
        self.drawn += 1
        if self.counts is not None:
            self.counts.add(token)
        if self.grammar is not None:
            self.grammar.accept(token)
