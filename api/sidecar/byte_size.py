"""Amounts of memory as people write them: `1GiB`, `512MiB`, `1000000`."""

from __future__ import annotations

import re

from kvtrie.prefix_tree.errors import InputError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_byte_size(text: str) -> int:
    """Bytes that `text` says.

    Raises:
        InputError: not a positive amount in a known unit.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in _UNITS:
        raise InputError(f"size {text!r} is not one like 1GiB, 512MiB or 1000000")
    size_bytes = int(float(found[1]) * _UNITS[found[2]])
    if size_bytes < 1:
        raise InputError(f"size {text!r} is not above 0")
    return size_bytes
