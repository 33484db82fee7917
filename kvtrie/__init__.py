"""kvtrie: prompts that begin alike compute their common part once.

    from kvtrie import PrefixCachedModel

The parts are `kvtrie.api`, `kvtrie.chunk_kernels`, `kvtrie.store` and `kvtrie.prefix_tree`; in the repository they
are the folders beside this one. `kvtrie.testing` (`api/testing`) has contract suites for stores and policies of
others. `PrefixCachedModel` and the names around it are loaded when they are first used. An import of a module by a
former name (`kvtrie.api.moved`) raises an error that says its present one.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING

# Python that runs at the root of a clone finds this folder first; the installed parts belong to it too.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from kvtrie.api import (
        Completion,
        Engine,
        EngineConfig,
        Eviction,
        LowerTier,
        PrefixCachedModel,
        Request,
        Sampling,
        SidecarTier,
        Warmed,
    )

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


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("kvtrie")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kvtrie.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


class _FormerNames:
    """The last finder that an import asks: a module of kvtrie that no other one found may have moved."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        # The table itself is left out: where it is missing, looking for it would never end.
        if name.startswith("kvtrie.") and name not in ("kvtrie.api", "kvtrie.api.moved"):
            import_module("kvtrie.api.moved").refuse_former_name(name)


sys.meta_path.append(_FormerNames)
