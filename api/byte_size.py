"""Sizes as people write them: `2GiB`, `512 MiB`, `1.5GB`, `4096`."""

from __future__ import annotations

import re

from kvtrie.prefix_tree.errors import InputError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(size: str | int) -> int:
    """`size` in bytes.

    Raises:
        InputError: not a number with an optional unit, or below one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(size).lower())
    if found is None or found[2] not in _UNITS or isinstance(size, bool):
        raise InputError(f"size {size!r} is not like 2GiB, 512MiB or 4096")
    value = int(float(found[1]) * _UNITS[found[2]])
    if value < 1:
        raise InputError(f"size {size!r} is less than one byte")
    return value
