"""The switch for checking every invariant at every step: KVTRIE_CHECK=1, for tests and for hunting a fault."""

from __future__ import annotations

import os

from kvtrie.prefix_tree.errors import InputError


def checks_wanted() -> bool:
    """Whether KVTRIE_CHECK asks for checks.

    Raises:
        InputError: it is neither 0 nor 1.
    """
    value = os.environ.get("KVTRIE_CHECK", "0")
    if value not in ("0", "1"):
        raise InputError(f"KVTRIE_CHECK={value!r} is neither 0 nor 1")
    return value == "1"
