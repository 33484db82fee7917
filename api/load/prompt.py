"""Prompts of a workload, before they are requests to a certain server; and the contract of a workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class LoadPrompt:
    """What one request asks: messages, or token ids."""

    tenant: int
    """From 0."""
    messages: tuple[Message, ...] = ()
    """Empty where `tokens` has the prompt."""
    tokens: tuple[int, ...] = ()
    """Token ids; empty where `messages` has the prompt."""
    chat: int | None = None
    """The chat that this is a turn of; a closed loop sends a turn after the one before it was answered."""

    @property
    def text(self) -> str:
        """The messages as one text: a single one as it is, several each after its role."""
        if len(self.messages) == 1:
            return self.messages[0].content
        said = [f"{message.role.capitalize()}: {message.content}" for message in self.messages]
        return "\n\n".join([*said, "Assistant:"])


class Workload(Protocol):
    """Makes prompts."""

    @property
    def needs_token_ids(self) -> bool:
        """Whether its prompts are token ids, for which there is no text."""

    def prompts(self, count: int, seed: int) -> list[LoadPrompt]:
        """`count` prompts in the order in which they are sent. Equal arguments: equal prompts, anywhere."""


def in_token_ids(prompts: Sequence[LoadPrompt], encode: Callable[[str], Sequence[int]]) -> list[LoadPrompt]:
    """The prompts with their texts as token ids."""
    return [replace(one, messages=(), tokens=tuple(encode(one.text))) for one in prompts]
