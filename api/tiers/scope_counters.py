"""Counters since the start, per scope: no tenant's figures contain another tenant's traffic."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Collection

OTHERS = "others"
"""Name under which totals of scopes that are no longer counted apart are added up. No scope has it."""


class ScopeCounters:
    """Named totals per scope. Thread-safe.

    Args:
        most_scopes: most scopes counted apart. Beyond it, the scope that counted nothing for longest is added to
            `OTHERS`: on an open sidecar a scope exists as soon as a request names it.
    """

    def __init__(self, most_scopes: int = 4096) -> None:
        self._most_scopes = most_scopes
        self._lock = threading.Lock()
        self._totals: OrderedDict[str, Counter[str]] = OrderedDict()
        self._others: Counter[str] = Counter()

    def add(self, scope: str, name: str, amount: int = 1) -> None:
        """Adds to one total."""
        with self._lock:
            totals = self._totals.get(scope)
            if totals is None:
                totals = self._totals[scope] = Counter()
                if len(self._totals) > self._most_scopes:
                    self._others.update(self._totals.popitem(last=False)[1])
            else:
                self._totals.move_to_end(scope)
            totals[name] += amount

    def by_scope(self) -> dict[str, dict[str, int]]:
        """Every total, by scope and name, sorted."""
        with self._lock:
            by_scope = {**self._totals, OTHERS: self._others} if self._others else self._totals
            return {scope: dict(sorted(totals.items())) for scope, totals in sorted(by_scope.items())}

    def summed(self, scopes: Collection[str] | None) -> dict[str, int | float]:
        """Totals over `scopes`, or over all."""
        summed: Counter[str] = Counter()
        for scope, totals in self.by_scope().items():
            if scopes is None or scope in scopes:
                summed.update(totals)
        return dict(sorted(summed.items()))
