"""Numbers that callers pass, checked."""

from __future__ import annotations

from collections.abc import Collection
from math import inf, isfinite
from numbers import Real
from operator import index
from typing import Any

from kvtrie.prefix_tree.errors import InputError


def whole_number(name: str, value: object) -> int:
    """`value` as an int, where it is a whole number of any type (bools are none).

    Raises:
        InputError: it is not; the message begins with `name`.
    """
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        try:
            return index(value)
        except TypeError:
            # A tensor of floats, or of several numbers: it has the method, and raises.
            raise InputError(f"{name} must be a whole number, got {value!r}") from None
    raise InputError(f"{name} must be a whole number, got {value!r}")


def finite_number(name: str, value: object) -> float:
    """`value` as a float, where it is a finite number of any type (bools are none).

    Raises:
        InputError: it is not; the message begins with `name`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise InputError(f"{name} must be finite, got {value!r}")
    return number


def number_within(name: str, value: object, least: float, most: float) -> float:
    """`value` as a float, where it is a number of `[least, most]`.

    Raises:
        InputError: it is not; the message begins with `name`.
    """
    number = finite_number(name, value)
    if not least <= number <= most:
        raise InputError(f"{name} must be from {least:g} to {most:g}, got {value!r}")
    return number


def flag(name: str, value: object) -> bool:
    """`value`, where it is a bool.

    Raises:
        InputError: it is not; the message begins with `name`.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return value


def token_set(name: str, tokens: Any) -> frozenset[int]:
    """A collection of token ids as a set.

    Raises:
        InputError: it is no collection of whole numbers; the message names `name`.
    """
    try:
        found: Collection[Any] = list(tokens)
    except TypeError:
        raise InputError(f"{name} must be a collection of token ids, e.g. {{2}}, got {tokens!r}") from None
    return frozenset(whole_number(f"a token id in {name}", token) for token in found)
