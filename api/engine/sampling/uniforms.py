"""A request's random numbers: a function of its seed and of the place in its completion, of nothing else.

They are no state that a batch, a preemption or a repeated step could disturb, and the same on every device.
"""

from __future__ import annotations

from hashlib import blake2b
from secrets import randbits
from struct import Struct

_PLACE = Struct("<QQ")
_MASK = (1 << 64) - 1


def fresh_seed() -> int:
    """A seed for a request that names none."""
    return randbits(64)


def uniform(seed: int, place: int, attempt: int = 0) -> float:
    """A number of `[0, 1)`, of 53 random bits.

    Args:
        seed: of the request, any integer of 64 bits, signed or not.
        place: of the token in the completion.
        attempt: of the draws for this token.
    """
    key = (seed & _MASK).to_bytes(8, "little")
    bits = int.from_bytes(blake2b(_PLACE.pack(place, attempt), key=key, digest_size=8).digest(), "little")
    return (bits >> 11) * 2.0**-53


def derived_seed(seed: int, copy: int) -> int:
    """The seed of the `copy`-th completion of a request; of the first (0) it is the request's own."""
    if copy == 0:
        return seed
    key = (seed & _MASK).to_bytes(8, "little")
    found = blake2b(copy.to_bytes(8, "little"), key=key, digest_size=8, person=b"fan-out")
    return int.from_bytes(found.digest(), "little")
