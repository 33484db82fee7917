"""Limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one step.

    Raises:
        InputError: a limit below one.
    """

    step_tokens: int = 2048
    """Most tokens computed in one step; longer prompts are prefilled in pieces."""
    max_running: int = 256
    """Most sequences in one step."""
    decode_graphs: bool = True
    """On CUDA devices, steps in which every sequence decodes replay captured graphs."""

    def __post_init__(self) -> None:
        if self.step_tokens < 1 or self.max_running < 1:
            raise InputError(f"engine limits must be at least 1, got {self}")
