"""Keys of chunks that have gone: so that a policy knows when it was wrong."""

from __future__ import annotations

from collections import OrderedDict


class Ghosts:
    """Chunk keys in the order they were added, `limit` at most; the oldest goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def add(self, key: bytes) -> None:
        """Remembers a key as the youngest."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def take(self, key: bytes) -> bool:
        """Whether the key was remembered; it is not any more."""
        if key not in self._keys:
            return False
        del self._keys[key]
        return True

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)
