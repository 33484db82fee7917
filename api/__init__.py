"""Everything that a user calls: the wrapper, the engine, the sidecar and the CLI.

Names are loaded when they are first used: the CLI must start fast, and `kvtrie doctor` must run where torch or
transformers are missing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrie.api.engine.engine import Engine
    from kvtrie.api.engine.engine_config import EngineConfig
    from kvtrie.api.engine.request import Completion, Request
    from kvtrie.api.engine.sampler import Sampling
    from kvtrie.api.eviction import Eviction
    from kvtrie.api.huggingface.cached_model import PrefixCachedModel, Warmed
    from kvtrie.api.tiers.lower_tier import LowerTier
    from kvtrie.api.tiers.sidecar_tier import SidecarTier

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "Eviction",
    "LowerTier",
    "PrefixCachedModel",
    "Request",
    "Sampling",
    "SidecarTier",
    "Warmed",
]

_HOME = {
    "Completion": "engine.request",
    "Engine": "engine.engine",
    "EngineConfig": "engine.engine_config",
    "Eviction": "eviction",
    "LowerTier": "tiers.lower_tier",
    "PrefixCachedModel": "huggingface.cached_model",
    "Request": "engine.request",
    "Sampling": "engine.sampler",
    "SidecarTier": "tiers.sidecar_tier",
    "Warmed": "huggingface.cached_model",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("kvtrie"):
            raise
        raise ImportError(f"{name} needs {error.name}: pip install 'kvtrie[all]'", name=error.name) from None
