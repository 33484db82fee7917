"""How many requests may wait, and when to ask again once as many do."""

from __future__ import annotations

from math import exp

from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.prefix_tree.errors import QueueFull

_FADE_SECONDS = 10.0
"""Steps count for less the longer ago they were: for 1/e after this time."""
_LEAST_SECONDS = 0.1
_MOST_SECONDS = 600.0
_UNKNOWN_SECONDS = 1.0
"""When to ask again while nothing has been computed yet."""


class Pace:
    """Tokens that the engine computes per second of late, those of prompts and of answers. Read in any thread."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def computed(self, tokens: int, seconds: float) -> None:
        """Takes in a step."""
        kept = exp(-seconds / _FADE_SECONDS)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + seconds

    def seconds_for(self, tokens: int) -> float:
        """About how long so many tokens take, within 0.1 s and ten minutes."""
        if not self._tokens:
            return _UNKNOWN_SECONDS
        return min(_MOST_SECONDS, max(_LEAST_SECONDS, tokens * self._seconds / self._tokens))


def check_waiting(config: EngineConfig, pace: Pace, waiting: int, waiting_tokens: int, tokens: int) -> None:
    """Whether one more request of so many tokens may wait.

    Raises:
        QueueFull: it may not. `retry_after_seconds` is how long the engine takes for as much as is too much.
    """
    if waiting >= config.max_waiting:
        # Room for one more is there when an average one has been admitted.
        after = pace.seconds_for(waiting_tokens // waiting * (waiting - config.max_waiting + 1))
        raise QueueFull(
            f"{waiting} requests wait already, of at most {config.max_waiting}; ask again in {after:.1f} s, or "
            "raise EngineConfig.max_waiting",
            after,
        )
    if waiting and waiting_tokens + tokens > config.max_waiting_tokens:
        after = pace.seconds_for(waiting_tokens + tokens - config.max_waiting_tokens)
        raise QueueFull(
            f"requests of {waiting_tokens} tokens wait already, and {tokens} more are above the "
            f"{config.max_waiting_tokens} that may; ask again in {after:.1f} s, or raise "
            "EngineConfig.max_waiting_tokens",
            after,
        )
