"""Limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one step, and of what may wait for one.

    Raises:
        InputError: a limit below one, or a part that is not above 0 and at most 1.
    """

    step_tokens: int = 2048
    """Most tokens computed in one step; longer prompts are prefilled in pieces."""
    prefill_part: float = 0.5
    """Most that one prompt takes of the prompt tokens that a step has for its scope, while other prompts of the
    scope want some. Scopes have equal parts. A prompt alone gets all."""
    max_running: int = 256
    """Most sequences in one step."""
    max_waiting: int = 65_536
    """Most requests that wait to be admitted; one more is refused with `QueueFull`. Those of `generate` and `warm`,
    whose callers wait for them, are never refused."""
    max_waiting_tokens: int = 1 << 28
    """Most tokens of requests that wait, prompts and `max_new_tokens`; one that would make them more is refused,
    unless none waits. A token of a prompt takes four bytes meanwhile."""
    decode_graphs: bool = True
    """On CUDA devices, steps in which every sequence decodes replay captured graphs."""

    def __post_init__(self) -> None:
        if min(self.step_tokens, self.max_running, self.max_waiting, self.max_waiting_tokens) < 1:
            raise InputError(f"engine limits must be at least 1, got {self}")
        if not 0 < self.prefill_part <= 1:
            raise InputError(f"prefill_part must be above 0 and at most 1, got {self.prefill_part}")
