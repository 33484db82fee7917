"""The tree and the pool as one memory: slots in, chunks shared, bytes accounted.

Slots change hands in these four ways and no other:

    free -> a sequence ............ `take`      (evicts leaves when short)
    a sequence -> the tree ........ `SequenceKV.commit`
    a sequence -> free ............ `give`      (called by `SequenceKV.close`)
    the tree -> free .............. eviction inside `take`, of the scope's own chunks where it is over its quota
"""

from __future__ import annotations

from collections import Counter
from itertools import count

import torch

from kvtrie.api.eviction import OVER_QUOTA, Eviction
from kvtrie.api.tiers.chunk_records import ChunkRecords
from kvtrie.api.tiers.lower_tier import LowerTier
from kvtrie.chunk_kernels import ChunkPool, check_served
from kvtrie.prefix_tree import ChunkShape, Evicted, Node, PrefixTree, Tier, check
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.tree import REMEMBERED_BYTES

DEVICE = 0
"""Index of the device tier in the tree."""
_REMEMBERED_PART = 256
"""Tombstones and idle roots may take one part in this many of the pool's size."""
_LEAST_REMEMBERED = 256 << 10
"""Least bytes for these, in a small pool; the most is `REMEMBERED_BYTES`."""


class KvMemory:
    """KV of one model on one device, over an optional lower tier. Not thread-safe; its owner serialises.

    Args:
        shape: one chunk's shape.
        memory_bytes: size of the pool; rounded down to whole chunks.
        device: device of the pool.
        lower: the tier below the device, or None.
        store_key: seals records with a keyed MAC; None for a plain checksum.
        pin_budget_bytes: most bytes each scope may pin; None for no limit.
        eviction: order of eviction, shares and quotas; LRU when left out.

    Raises:
        InputError: `memory_bytes` is less than two chunks, the device does not serve the shape or its KV format,
            or KVTRIE_CHECK is neither 0 nor 1.
    """

    def __init__(
        self,
        shape: ChunkShape,
        memory_bytes: int,
        device: torch.device | str = "cpu",
        lower: LowerTier | None = None,
        store_key: bytes | None = None,
        pin_budget_bytes: int | None = None,
        eviction: Eviction | None = None,
    ) -> None:
        slots = memory_bytes // shape.chunk_bytes
        if slots < 2:
            raise InputError(
                f"memory={memory_bytes} bytes holds {slots} chunks of {shape.chunk_bytes} bytes; "
                f"give at least {2 * shape.chunk_bytes}, or use smaller chunks"
            )
        check_served(shape, torch.device(device))
        self.shape = shape
        self.pool = ChunkPool(shape, slots, device)
        self._eviction = eviction or Eviction()
        self.tree = PrefixTree(
            shape.chunk_tokens,
            [self._eviction.tier("device", slots * shape.chunk_bytes, shape.chunk_bytes)],
            remembered_bytes=min(max(memory_bytes // _REMEMBERED_PART, _LEAST_REMEMBERED), REMEMBERED_BYTES),
            pin_budget_bytes=pin_budget_bytes,
        )
        self.counters: Counter[str] = Counter()
        """Totals since start: requests, prompt_tokens, cached_tokens, loaded_chunks, preemptions, ..."""
        self.records = None if lower is None else ChunkRecords(self.pool, lower, store_key, self.counters)
        self._layouts = count()
        self._check_often = checks_wanted()

    @property
    def _tier(self) -> Tier:
        return self.tree.tiers[DEVICE]

    def new_layout(self) -> int:
        """A new number, that no sequence has had: see `SequenceKV.layout`."""
        return next(self._layouts)

    def take(self, scope: str, count: int, after: int | None = None) -> list[int] | None:
        """Takes `count` slots for a request of `scope`, evicting leaves without holds if too few are free.

        The slots follow slot `after` where possible. None if evictions would not free enough: nothing is evicted.
        """
        size = self.shape.chunk_bytes
        missing = count - self.pool.free_slots.free
        # Where one is missing, whatever may be evicted is enough: no need to add up what may.
        if missing > 1 and not self.tree.can_free(DEVICE, missing * size):
            return None
        if over := self._tier.over_quota_bytes(scope, count * size):
            self._evict(over, OVER_QUOTA, scope)
        missing = count - self.pool.free_slots.free
        if missing > 0:
            self._evict(missing * size, self._eviction.reason)
        slots = self.pool.free_slots.take(count, after)
        if slots is not None:
            self._tier.reserve(scope, count * size)
        return slots

    def _evict(self, size_bytes: int, reason: str, scope: str | None = None) -> None:
        try:
            self._free(self.tree.evict(DEVICE, size_bytes, reason, scope=scope))
        except BaseException:
            self._free(self.tree.untold(DEVICE))
            raise

    def _free(self, evicted: list[Evicted]) -> None:
        self.pool.free_slots.give([_slot(e.handle) for e in evicted])

    def give(self, scope: str, slots: list[int]) -> None:
        """Frees slots of `take` that the tree does not own."""
        self._tier.unreserve(scope, len(slots) * self.shape.chunk_bytes)
        self.pool.free_slots.give(slots)

    def last_slot(self, node: Node) -> int | None:
        """Slot of the path's last chunk, to put the next one beside it; None at the root."""
        return device_slot(node) if node.depth else None

    def check(self) -> None:
        """Checks every invariant of tree and pool.

        Raises:
            AssertionError: names what does not hold.
        """
        check(self.tree)
        free = self.pool.free_slots.free * self.shape.chunk_bytes
        assert self._tier.free_bytes == free, (self._tier.free_bytes, free)
        slots = [device_slot(node) for node in self.tree.walk() if node.is_resident]
        assert len(slots) == len(set(slots)), "two chunks share a slot"

    def check_if_asked(self) -> None:
        """Calls `check` if KVTRIE_CHECK=1."""
        if self._check_often:
            self.check()


def _slot(handle: object) -> int:
    assert isinstance(handle, int)
    return handle


def device_slot(node: Node) -> int:
    """The slot of a node that is resident on the device."""
    residence = node.at[DEVICE]
    assert residence is not None
    return _slot(residence.handle)
