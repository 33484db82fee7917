"""A lower tier over a store in this process: Redis, or memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.store import Store, WriteBehind


class StoreTier:
    """A `LowerTier` whose records are in `store`, under their chunk keys. Its `close` closes the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._behind = WriteBehind(store)

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        """See `LowerTier.load`. The namespace is not needed: every key is chained to its digest."""
        held: list[bytes] = []
        for record in self._store.get_many(keys):
            if record is None:
                break
            held.append(record)
        return held

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        """See `LowerTier.offer`."""
        return self._behind.offer(key, make())

    def flush(self, timeout_seconds: float) -> bool:
        """See `LowerTier.flush`."""
        return self._behind.flush(timeout_seconds)

    def stats(self) -> Mapping[str, int | float]:
        """See `LowerTier.stats`."""
        return asdict(self._behind.stats())

    def close(self) -> None:
        """See `LowerTier.close`."""
        self._behind.close(timeout_seconds=2.0)
        self._store.close()
