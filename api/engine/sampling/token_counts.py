"""Which tokens a request has seen, and how often its completion has each: what penalties are computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class TokenCounts:
    """Distinct tokens of a request. A new token costs constant time.

    Args:
        prompt: token ids; whether their KV came from the cache makes no difference.
        with_prompt: whether the prompt's tokens are listed, as the repetition penalty wants them.
    """

    def __init__(self, prompt: Sequence[int] | NDArray[np.int32], with_prompt: bool) -> None:
        seen = np.unique(np.asarray(prompt, np.int64)) if with_prompt else np.empty(0, np.int64)
        self._size = len(seen)
        self._tokens: NDArray[np.int64] = np.concatenate([seen, np.empty(16, np.int64)])
        self._counts: NDArray[np.float32] = np.zeros(len(self._tokens), np.float32)
        self._places = dict(zip(seen.tolist(), range(self._size)))

    def add(self, token: int) -> None:
        """Counts a token of the completion."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = self._size
            if place == len(self._tokens):
                # Doubled, so that many tokens together cost linear time.
                self._tokens = np.resize(self._tokens, 2 * place)
                self._counts = np.concatenate([self._counts, np.zeros(place, np.float32)])
            self._tokens[place] = token
            self._size += 1
        self._counts[place] += 1

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Distinct token ids, `[seen]`; a view that the next `add` may outdate."""
        return self._tokens[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often the completion has each of `tokens`, `[seen]`; 0 for those of the prompt alone."""
        return self._counts[: self._size]
