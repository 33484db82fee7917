"""Continuous batching over shared KV: requests, sequences and the memory they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrie.api.engine.engine import Engine
    from kvtrie.api.engine.engine_config import EngineConfig

__all__ = ["Engine", "EngineConfig"]


def __getattr__(name: str) -> object:
    # Loaded when asked for: the command line's parts import this package without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvtrie.api.engine import engine, engine_config

    return getattr(engine if name == "Engine" else engine_config, name)
