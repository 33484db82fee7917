"""Wrong API keys: limits per address, and lines in the log."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

_LOG = logging.getLogger(__name__)

AT_ONCE = 10
"""Wrong keys that an address may try at once: a restart of a host's engines with an old key."""
PER_SECOND = 1.0
"""Wrong keys that it may try for ever."""
MOST_ADDRESSES = 4096
"""Addresses that are remembered; the one not seen for longest is forgotten first."""
_LOG_SECONDS = 1.0


@dataclass(slots=True)
class _Address:
    tries: float
    """Wrong keys that it may still try now."""
    at_seconds: float
    """Time at which `tries` was computed."""
    right: set[bytes] = field(default_factory=set)
    """Digests of headers whose keys were right from here: they are no guesses."""


class WrongKeys:
    """Counts and bounds wrong keys per address. Called on the event loop only.

    An address that has used its tries up gets no answer about a key that it shows for the first time, until
    it may try again. Keys of it that were right before are checked as usual: one engine with a wrong key, or one
    guessing neighbour behind the same proxy, does not shut the others out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self.total = 0
        """Wrong keys since the start, those not looked at included."""
        self._logged_at = float("-inf")
        self._unlogged = 0

    def may_try(self, address: str, authorization: str) -> bool:
        """Whether a key that `address` presents is checked."""
        known = self._addresses.get(address)
        if known is None or self._refill(known) >= 1.0:
            return True
        if _digest(authorization) in known.right:
            return True
        self._count(address, "not looked at")
        return False

    def right(self, address: str, authorization: str) -> None:
        """Notes that a key was right: it is no guess from now on."""
        self._remembered(address).right.add(_digest(authorization))

    def wrong(self, address: str) -> None:
        """Notes that a key was wrong."""
        known = self._remembered(address)
        known.tries = max(0.0, self._refill(known) - 1.0)
        self._count(address, "refused")

    def _remembered(self, address: str) -> _Address:
        known = self._addresses.get(address)
        if known is None:
            known = self._addresses[address] = _Address(AT_ONCE, self._clock())
            if len(self._addresses) > MOST_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(address)
        return known

    def _refill(self, known: _Address) -> float:
        now = self._clock()
        known.tries = min(AT_ONCE, known.tries + PER_SECOND * (now - known.at_seconds))
        known.at_seconds = now
        return known.tries

    def _count(self, address: str, what: str) -> None:
        """One line in the log for the first, and then one a second at most: a guesser must not fill the disk."""
        self.total += 1
        now = self._clock()
        if now - self._logged_at < _LOG_SECONDS:
            self._unlogged += 1
            return
        beside = f", and {self._unlogged} more since the last line" if self._unlogged else ""
        _LOG.warning("wrong API key from %s %s%s (%d in all)", address or "?", what, beside, self.total)
        self._logged_at, self._unlogged = now, 0


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).digest()
