"""The protocol through which the engine uses a tier below the device, whoever owns its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kvtrie.prefix_tree.namespace import Namespace


class LowerTier(Protocol):
    """Records by chunk key. Implemented over a store (in this process) and over a sidecar (HTTP).

    Never the reason a request fails: an outage raises `StoreError` within the deadline, and the caller
    recomputes. `kvtrie.testing.LowerTierContract` checks an implementation, rule by rule.
    """

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        """Encoded records of the longest held prefix of `keys`; `[]` is a miss. Unverified.

        Raises:
            StoreError: unreachable, refused, or past its deadline.
        """

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        """Takes one encoded record to be written behind, in path order; never blocks.

        `make` is called before this returns, if at all: the chunk it reads may be gone later. Returns
        False where the record was dropped (queue full, tier down).
        """

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until everything offered is written or dropped; False when time ran out."""

    def stats(self) -> Mapping[str, int | float]:
        """Counters since start."""

    def close(self) -> None:
        """Writes what it can within a short deadline, then lets go of connections and threads. May be called twice.

        Afterwards `load` raises StoreError or returns `[]`, and `offer` returns False.
        """
