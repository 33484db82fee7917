"""The store behind a sidecar: one store for all scopes, in which no scope can name another's records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kvtrie.prefix_tree.errors import StoreError
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.store import Store, WriteBehind, WriteBehindStats

_PERSON = b"kvtrie scope 1"
_PROBE = bytes(KEY_BYTES)


def scoped_key(scope: str, namespace: bytes, key: bytes) -> bytes:
    """Key of a scope's record in the store: 16 bytes, like a chunk key."""
    encoded = scope.encode()
    tagged = len(encoded).to_bytes(4, "little") + encoded + namespace + key
    return hashlib.blake2b(tagged, digest_size=KEY_BYTES, person=_PERSON).digest()


class ScopedStore:
    """Reads `store`, and writes it behind; closes it with itself.

    Args:
        queue_bytes: most bytes waiting to be written; they count beside the host tier's memory.
    """

    def __init__(self, store: Store, *, queue_bytes: int = 64 << 20) -> None:
        self._store = store
        self._behind = WriteBehind(store, max_bytes=queue_bytes)

    def fetch(self, scope: str, namespace: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """Bytes that the store has under `keys`, unverified.

        Raises:
            StoreError: unreachable, past its deadline, or failed just before.
        """
        return self._store.get_many([scoped_key(scope, namespace, key) for key in keys])

    def offer(self, scope: str, namespace: bytes, key: bytes, data: bytes) -> bool:
        """Queues one record; False where it was dropped."""
        return self._behind.offer(scoped_key(scope, namespace, key), data)

    def is_answering(self) -> bool:
        """Asks the store for something small, and waits no longer than its deadline."""
        try:
            self._store.get_many([_PROBE])
        except StoreError:
            return False
        return True

    def stats(self) -> WriteBehindStats:
        """Counts of the queue to the store, over all scopes."""
        return self._behind.stats()

    def close(self, timeout_seconds: float) -> None:
        """Writes what it can within `timeout_seconds`, then closes the store."""
        self._behind.close(timeout_seconds)
        self._store.close()
