"""Counters since start, each under the scope it is about: nobody's figures hold another's traffic."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection


class ScopeCounters:
    """Named totals per scope. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, Counter[str]] = {}

    def add(self, scope: str, name: str, amount: int = 1) -> None:
        """Adds to one total."""
        with self._lock:
            self._totals.setdefault(scope, Counter())[name] += amount

    def by_scope(self) -> dict[str, dict[str, int]]:
        """Every total, by scope and name, sorted."""
        with self._lock:
            return {scope: dict(sorted(totals.items())) for scope, totals in sorted(self._totals.items())}

    def summed(self, scopes: Collection[str] | None) -> dict[str, int | float]:
        """Totals over `scopes`, or over all."""
        summed: Counter[str] = Counter()
        for scope, totals in self.by_scope().items():
            if scopes is None or scope in scopes:
                summed.update(totals)
        return dict(sorted(summed.items()))
