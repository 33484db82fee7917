"""Tombstones: which chunks were evicted, when and why, so that `explain` can explain a miss."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

TOMBSTONE_BYTES = 280
"""Measured size of one tombstone with its place in the ring (CPython 3.11), for the memory figures."""
RING_BYTES = 400
"""Measured size of one scope's ring besides its tombstones."""
MOST_BYTES = 16 << 20
"""Memory that the tombstones of all scopes may take together."""


def tombstone_memory(count: int, scopes: int) -> int:
    """Bytes that `count` tombstones of so many scopes take."""
    return count * TOMBSTONE_BYTES + scopes * RING_BYTES


class Tombstone(NamedTuple):
    """One evicted chunk."""

    key: bytes
    depth: int
    """Chunks from the root, counting this one."""
    tier: str
    evicted_at: float
    """Seconds, on the clock of the owner of these tombstones; a `PrefixTree` uses its steady clock."""
    reason: str


class Tombstones:
    """A bounded ring of tombstones per scope, the oldest first. Where all scopes together have too many, the scope
    whose latest eviction is longest ago loses its oldest.

    Args:
        per_scope: most that a scope remembers; 0 for none at all.
        most_bytes: memory that all scopes' tombstones may take together.
    """

    def __init__(self, per_scope: int, most_bytes: int = MOST_BYTES) -> None:
        self.per_scope = per_scope
        self.most_bytes = most_bytes
        self._rings: OrderedDict[str, OrderedDict[bytes, Tombstone]] = OrderedDict()
        """By scope, the one with the latest eviction last; none is empty."""
        self._count = 0

    def add(self, scope: str, stone: Tombstone) -> None:
        """Remembers an eviction, forgetting the scope's oldest when the ring is full."""
        if self.per_scope < 1:
            return
        ring = self._rings.get(scope)
        if ring is None:
            ring = self._rings[scope] = OrderedDict()
        else:
            self._rings.move_to_end(scope)
        before = len(ring)
        ring[stone.key] = stone
        if len(ring) == before:
            ring.move_to_end(stone.key)
            return
        if before == self.per_scope:
            ring.popitem(last=False)
            return
        self._count += 1
        while self.size_bytes > self.most_bytes:
            scope, ring = next(iter(self._rings.items()))
            ring.popitem(last=False)
            self._removed_from(scope, ring)

    def discard(self, scope: str, key: bytes) -> None:
        """Forgets a chunk that is cached again."""
        ring = self._rings.get(scope)
        if ring is not None and ring.pop(key, None) is not None:
            self._removed_from(scope, ring)

    def _removed_from(self, scope: str, ring: OrderedDict[bytes, Tombstone]) -> None:
        self._count -= 1
        if not ring:
            del self._rings[scope]

    def find(self, scope: str, key: bytes) -> Tombstone | None:
        """The tombstone of a chunk of this scope, or None."""
        ring = self._rings.get(scope)
        return None if ring is None else ring.get(key)

    def by_scope(self) -> list[tuple[str, list[Tombstone]]]:
        """A copy: each scope's tombstones, oldest first."""
        return [(scope, list(ring.values())) for scope, ring in self._rings.items()]

    def __iter__(self) -> Iterator[tuple[str, Tombstone]]:
        for scope, ring in self._rings.items():
            for stone in ring.values():
                yield scope, stone

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return bool(self._rings)

    @property
    def size_bytes(self) -> int:
        """Memory the rings take."""
        return tombstone_memory(self._count, len(self._rings))
