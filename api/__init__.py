"""What people touch: the wrapper, the engine, the sidecar and the CLI."""

from kvtrie.api.cached_model import PrefixCachedModel, Warmed
from kvtrie.api.engine import Engine, EngineConfig
from kvtrie.api.lower_tier import LowerTier
from kvtrie.api.request import Completion, Request
from kvtrie.api.sampler import Sampling

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "LowerTier",
    "PrefixCachedModel",
    "Request",
    "Sampling",
    "Warmed",
]
