"""The exported names are sorted, exist, and cost no optional dependency."""

from __future__ import annotations

import subprocess
import sys

import kvtrie.store


def test_exports_are_sorted_and_there() -> None:
    assert kvtrie.store.__all__ == sorted(kvtrie.store.__all__)
    assert all(hasattr(kvtrie.store, name) for name in kvtrie.store.__all__)


def test_importing_the_stores_imports_neither_redis_nor_torch() -> None:
    code = "import sys, kvtrie.store; print([n for n in ('redis', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "redis" not in done.stdout
    assert "torch" not in done.stdout
