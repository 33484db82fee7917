"""Lets one module of a large package be imported without what it does not use: GPU code, servers, models."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from unittest.mock import MagicMock


class _Stubs(MetaPathFinder, Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(name + ".") for name in self.names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> MagicMock:  # type: ignore[override]
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: every attribute is a mock."""


@contextmanager
def stubbed(package: str, names: set[str]) -> Iterator[set[str]]:
    """While open, `package` is imported without running its own `__init__`, and modules `names` are mocks.

    The set can be added to. What was imported meanwhile is forgotten afterwards.

    Raises:
        ImportError: the package is not installed.
    """
    spec = PathFinder.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not installed")
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    finder, before = _Stubs(names), set(sys.modules)
    sys.modules[package] = bare
    sys.meta_path.insert(0, finder)
    try:
        yield names
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == package or isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]
