"""Ghosts: keys of evicted chunks, by which a policy recognises a chunk that it evicted too early."""

from __future__ import annotations

from collections import OrderedDict


class Ghosts:
    """Chunk keys in the order they were added, `limit` at most; the oldest is forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def add(self, key: bytes) -> None:
        """Remembers a key, as the youngest."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def take(self, key: bytes) -> bool:
        """Forgets a key; returns whether it was remembered."""
        if key not in self._keys:
            return False
        del self._keys[key]
        return True

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)
