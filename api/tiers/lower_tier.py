"""The protocol through which the engine uses a tier below the device, whoever owns its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kvtrie.prefix_tree.namespace import Namespace


class LowerTier(Protocol):
    """Records by chunk key, below the device. Implemented over a store (in this process) and a sidecar (HTTP).

    No request fails because of a tier: an outage raises `StoreError` within the deadline, and on an error of any
    kind the engine computes what the tier would have given. Chunk keys are 16 bytes, records are as
    `docs/records.md` has them. Methods are called from several threads. `kvtrie.testing.LowerTierContract` checks
    an implementation, rule by rule.
    """

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        """Reads records, without verifying them: the engine compares each with what it computed itself.

        Args:
            namespace: of all `keys`.
            keys: chunk keys in path order, from any depth.

        Returns:
            Encoded records of the longest held prefix of `keys`; `[]` is a miss.

        Raises:
            StoreError: the tier is unreachable, refused the call, or did not answer within its deadline.
        """

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        """Queues one record to be written behind, without waiting. Records are offered in path order.

        Args:
            namespace: the record's namespace.
            key: the record's chunk key; for a namespace's own record the first 16 bytes of its digest.
            make: makes the encoded record. Call it before returning, if at all: the slot that it reads may be
                reused later.

        Returns:
            False if the record was dropped (queue full, tier down).
        """

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until all that was offered is written or dropped; False if `timeout_seconds` passed before."""

    def stats(self) -> Mapping[str, int | float]:
        """Counters since the start, by name; `PrefixCachedModel.stats()["lower"]` shows them."""

    def close(self) -> None:
        """Writes what is queued within a short deadline, then ends connections and threads. May be called twice.

        Afterwards `load` raises StoreError or returns `[]`, and `offer` returns False.
        """
