"""Names like one that was mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_LEAST_RATIO = 0.6
"""As `difflib.get_close_matches` has it: a letter too many, too few or changed in a name of three or more."""
_MOST = 5


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Those of `known` that are close to `name`, at most five, the closest first.

    Letters' case, and a kind before a colon (`tenant:acme`), are not compared.
    """
    rated = [(_ratio(_bare(name), _bare(other)), other) for other in set(known)]
    close = [(ratio, other) for ratio, other in rated if ratio >= _LEAST_RATIO]
    return [other for _, other in sorted(close, key=lambda one: (-one[0], one[1]))[:_MOST]]


def _bare(name: str) -> str:
    return name.rpartition(":")[2].casefold()


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio() if one and other else 0.0
