"""Rotary position embeddings whose frequencies depend on more than the position."""

from __future__ import annotations

from typing import Any

from torch import nn

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""RoPE types whose frequencies change with the longest position of a batch: exact only below the original one."""


def rope_parameters(config: Any) -> dict[str, Any]:
    """RoPE parameters, wherever this version of transformers keeps them; {} where there are none."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return dict(found) if found else {}


def max_positions(config: Any) -> tuple[int, str]:
    """Most tokens for which attention is exact whatever else is in the batch, and the setting that limits it."""
    limits = [(int(config.max_position_embeddings), "max_position_embeddings")]
    rope = rope_parameters(config)
    # One set of parameters, or one for each kind of layer.
    for parameters in [value for value in rope.values() if isinstance(value, dict)] or [rope]:
        if parameters.get("rope_type", parameters.get("type")) in LENGTH_DEPENDENT:
            original = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            # Dynamic RoPE keeps frequencies it once grew until a strictly shorter sequence comes along.
            limits.append((int(original or config.max_position_embeddings) - 1, "original RoPE positions"))
    return min(limits)


def depends_on_length(module: nn.Module) -> bool:
    """Whether a module computes rotary frequencies that change with the longest position of a batch."""
    kinds = module.__dict__.get("rope_type")
    if isinstance(kinds, dict):
        return not LENGTH_DEPENDENT.isdisjoint(map(str, kinds.values()))
    return isinstance(kinds, str) and kinds in LENGTH_DEPENDENT
