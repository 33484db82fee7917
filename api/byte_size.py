"""Sizes as people write them: `2G`, `512M`, `2GiB`, `512 MiB`, `1.5GB`, `4096`.

`K`, `M`, `G` and `T` alone are powers of 1024, as docker, systemd, the JVM and GNU's tools have it: whoever writes
`--memory 2G` means what a machine's memory is counted in. `KB`, `MB`, `GB` and `TB` are powers of 1000, as the SI
has it. Letters' case does not matter.
"""

from __future__ import annotations

import re
from fractions import Fraction

from kvtrie.prefix_tree.errors import InputError

SIZE_HELP = "2G or 2GiB (2^30), 2GB (10^9), 512M, 4096 (bytes)"
"""How a SIZE is written, for the help of options that take one."""

_PREFIXES = ("k", "m", "g", "t")
_UNITS = {"": 1, "b": 1}
_UNITS |= {prefix + end: 1024**i for i, prefix in enumerate(_PREFIXES, 1) for end in ("", "i", "ib")}
_UNITS |= {f"{prefix}b": 1000**i for i, prefix in enumerate(_PREFIXES, 1)}
_LARGEST = (1 << 63) - 1


def parse_bytes(size: str | int) -> int:
    """`size` in bytes; a part of a byte is left out.

    Raises:
        InputError: not a number with an optional unit, below one byte, or 2^63 bytes and more.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", str(size).lower())
    if found is None or found[2] not in _UNITS or isinstance(size, bool):
        raise InputError(f"size {_shown(size)} is not like 2GiB, 2G, 512MB or 4096")
    # Not by floats: they lose bytes beyond 2^53.
    value = int(Fraction(found[1].rstrip(".")) * _UNITS[found[2]])
    if value < 1:
        raise InputError(f"size {_shown(size)} is less than one byte")
    if value > _LARGEST:
        raise InputError(f"size {_shown(size)} is beyond 2^63 bytes: write one like 2GiB")
    return value


def _shown(size: object) -> str:
    shown = ascii(size)
    return shown if len(shown) <= 40 else shown[:39] + "..."
