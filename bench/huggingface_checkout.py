"""Imports the generation tests of a transformers checkout, of the installed version or of a neighbouring one.

The tests of other subjects (pipelines, parallel training, export) are not imported. A name that the installed
version or this environment lacks is replaced by a placeholder, which is told: a test that uses it fails, with and
without kvtrie.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_OTHER_SUBJECTS = (
    "tests.exporters",
    "tests.exporters.test_export",
    "tests.test_configuration_common",
    "tests.test_fsdp_mixin",
    "tests.test_pipeline_mixin",
    "tests.test_tensor_parallel_mixin",
    "tests.test_training_mixin",
)
_MOST_MISSING = 60


class _Placeholder(type):
    """A class that can be a mixin, or a decorator with or without arguments."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if "_is_placeholder" not in vars(cls):
            return super().__call__(*args, **keywords)
        return args[0] if len(args) == 1 and callable(args[0]) and not keywords else cls


def _placeholder(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Placeholder(name, (), {"_is_placeholder": True})


def _placeholder_module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    module.__getattr__ = _placeholder  # type: ignore[method-assign]
    return module


class Checkout:
    """A transformers repository on disk; its `tests` package takes the place of any other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing: list[str] = []
        """Names that placeholders stand for."""
        sys.path[:0] = [str(root), str(root / "utils")]
        for name in _OTHER_SUBJECTS:
            sys.modules[name] = _placeholder_module(name)
        self._add_constants()

    def module(self, name: str) -> ModuleType:
        """Imports `name`, e.g. `tests.models.llama.test_modeling_llama`.

        Raises:
            ImportError: it is not there, or cannot be imported even with placeholders.
        """
        for _ in range(_MOST_MISSING):
            try:
                return importlib.import_module(name)
            except ImportError as error:
                if error.name is None or error.name == name:
                    raise
                self._replace(error)
        raise ImportError(f"{name}: more than {_MOST_MISSING} names are missing: {', '.join(self.missing)}")

    def _replace(self, error: ImportError) -> None:
        if isinstance(error, ModuleNotFoundError):
            self.missing.append(str(error.name))
            sys.modules[str(error.name)] = _placeholder_module(str(error.name))
            return
        lacks = getattr(error, "name_from", None) or error.msg.split("'")[1]
        self.missing.append(f"{error.name}.{lacks}")
        setattr(sys.modules[str(error.name)], lacks, _placeholder(lacks))

    def _add_constants(self) -> None:
        """Plain constants of the checkout's test tools that the installed ones lack."""
        from transformers import testing_utils

        source = self.root / "src" / "transformers" / "testing_utils.py"
        for node in ast.parse(source.read_text()).body if source.exists() else []:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                try:
                    value = ast.literal_eval(node.value)
                except ValueError:
                    continue
                if not hasattr(testing_utils, name):
                    setattr(testing_utils, name, value)
