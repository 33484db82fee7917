"""What became of each request, and of the run as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

NO_CONNECTION = "no connection"
CUT = "cut"
MALFORMED = "malformed"
TIMED_OUT = "timed out"
ERROR_EVENT = "error event"
HTTP = "HTTP "
"""Kinds of failure; an answer of another status than 200 is `HTTP 429`, say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds from the run's start, of a steady clock."""

    index: int
    """Its place in the plan."""
    tenant: int
    due: float
    """When it should be sent; latencies count from here. In a closed loop, when it was sent."""
    sent: float
    """When it was sent: later than `due` where this client was late, or had no connection to spare."""
    ended: float
    """When `[DONE]` arrived, or the request failed."""
    text_times: Sequence[float] = ()
    """When each piece of text arrived."""
    failure: str | None = None
    """The kind of failure; None for a whole answer."""
    message: str = ""
    """What the server or the connection said about the failure."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    """None where the server reported no usage; likewise the next two."""
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds from `due` to the first text; None where there was none."""
        return self.text_times[0] - self.due if self.text_times else None

    @property
    def tokens(self) -> int:
        """Tokens of the answer; pieces of text where the server reported no usage."""
        return len(self.text_times) if self.completion_tokens is None else self.completion_tokens

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first one; None for an answer of less than two tokens."""
        if self.tokens < 2 or len(self.text_times) < 2:
            return None
        return (self.text_times[-1] - self.text_times[0]) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class LoadRun:
    """A run that has ended."""

    outcomes: Sequence[Outcome]
    """In order of the plan; requests that were never sent or cut off by an interrupt are not among them."""
    planned: int
    """Requests of the plan."""
    seconds: float
    """From the start to the last outcome."""
    cpu_seconds: float
    """Processor time of this client."""
    loop_delays: Sequence[float] = field(default=(), repr=False)
    """How much later than asked this client's event loop ran, in seconds; sampled all along."""
    waited_for_connection: int = 0
    """Requests that were due while all connections were in use."""
    was_interrupted: bool = False
