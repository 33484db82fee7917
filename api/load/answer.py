"""One streamed answer, as its events arrive."""

from __future__ import annotations

import json
from typing import Any

from kvtrie.api.load.sse import Event, MalformedStream
from kvtrie.prefix_tree.errors import KvtrieError

DONE = "[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a chat's delta that have text."""


class ErrorEvent(KvtrieError):
    """The server sent an error in the middle of a stream."""


class StreamedAnswer:
    """What a stream has said so far. Times are those passed to `take`."""

    def __init__(self) -> None:
        self.is_done = False
        """Whether `[DONE]` has arrived."""
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._text_times: list[float] = []
        self._choice_times: list[float] = []

    @property
    def text_times(self) -> list[float]:
        """When each piece of text arrived.

        A server without a tokenizer sends pieces without text; where no piece has any, all of them count. A
        chat begins with a piece that names the role only: of a chat without text, the last piece counts.
        """
        return self._text_times or self._choice_times

    def take(self, event: Event, now: float) -> None:
        """Notes an event that arrived at `now`.

        Raises:
            MalformedStream: its data is not what OpenAI's API streams.
            ErrorEvent: it tells of an error.
        """
        if event.data == DONE:
            self.is_done = True
            return
        try:
            said = json.loads(event.data)
        except (ValueError, RecursionError):
            said = None
        if event.name == "error" or (isinstance(said, dict) and said.get("error")):
            raise ErrorEvent(error_message(said) or event.data[:200])
        if not isinstance(said, dict):
            raise MalformedStream(f"an event is no JSON object: {event.data[:60]!a}")
        choices = said.get("choices", [])
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise MalformedStream(f"an event's choices are no list of objects: {event.data[:60]!a}")
        # 1. Text, of any choice.
        if any(_has_text(choice) for choice in choices):
            self._text_times.append(now)
        elif any("text" in choice or choice.get("finish_reason") for choice in choices):
            self._choice_times.append(now)
        for choice in choices:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        # 2. Counts, which the last event has.
        usage = said.get("usage")
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details")
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))
            self.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, dict) else None


def error_message(said: Any) -> str:
    """The message of an error in OpenAI's form, or in FastAPI's; empty where there is none."""
    if isinstance(said, dict):
        error = said.get("error", said.get("detail", said.get("message")))
        if isinstance(error, dict):
            error = error.get("message")
        if isinstance(error, str):
            return error[:200]
    return ""


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(name) for name in _TEXTS) or bool(delta.get("tool_calls"))
    return bool(choice.get("text"))


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
