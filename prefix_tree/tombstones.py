"""Tombstones: what was evicted, when and why, so that `explain` can answer for a miss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

TOMBSTONE_BYTES = 280
"""Measured size of one tombstone with its place in the ring (CPython 3.11), for the memory figures."""


class Tombstone(NamedTuple):
    """One evicted chunk."""

    key: bytes
    depth: int
    """Chunks from the root, counting this one."""
    tier: str
    evicted_at: float
    """Unix seconds."""
    reason: str


class Tombstones:
    """A bounded ring per scope; the oldest goes first."""

    def __init__(self, per_scope: int) -> None:
        self.per_scope = per_scope
        """Most that a scope remembers; 0 for none at all."""
        self._rings: dict[str, OrderedDict[bytes, Tombstone]] = {}

    def add(self, scope: str, stone: Tombstone) -> None:
        """Remembers an eviction, forgetting the scope's oldest when the ring is full."""
        if self.per_scope < 1:
            return
        ring = self._rings.get(scope)
        if ring is None:
            ring = self._rings[scope] = OrderedDict()
        ring[stone.key] = stone
        ring.move_to_end(stone.key)
        if len(ring) > self.per_scope:
            ring.popitem(last=False)

    def discard(self, scope: str, key: bytes) -> None:
        """Forgets a chunk that is cached again."""
        if scope in self._rings:
            self._rings[scope].pop(key, None)

    def find(self, scope: str, key: bytes) -> Tombstone | None:
        """The tombstone of a chunk of this scope, or None."""
        ring = self._rings.get(scope)
        return None if ring is None else ring.get(key)

    def __iter__(self) -> Iterator[tuple[str, Tombstone]]:
        for scope, ring in self._rings.items():
            for stone in ring.values():
                yield scope, stone

    def __len__(self) -> int:
        return sum(len(ring) for ring in self._rings.values())

    def __bool__(self) -> bool:
        return bool(self._rings)

    @property
    def size_bytes(self) -> int:
        """Memory the rings take."""
        return len(self) * TOMBSTONE_BYTES
