"""What every lower tier must do: `kvtrie.api.LowerTier`, rule by rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kvtrie.api.tiers.lower_tier import LowerTier
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.errors import StoreError
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.store import encode_namespace_record
from kvtrie.testing.stored_path import SMALL_SHAPE, StoredPath

_FLUSH_SECONDS = 20.0
"""Ends a check whose tier writes nothing; no check is about time."""


class LowerTierContract:
    """Derive `TestMyTier` from it and override `make_tier`. The records it offers are valid ones, of chunks of four
    tokens, sealed with no store key."""

    def make_tier(self) -> LowerTier:
        """A tier that is open, reachable and empty. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must override make_tier")

    @contextmanager
    def _opened(self) -> Iterator[LowerTier]:
        tier = self.make_tier()
        try:
            yield tier
        finally:
            tier.close()

    def test_a_miss_is_an_empty_list(self) -> None:
        """`load` returns `[]` where it holds no first chunk, and for no keys."""
        path = _path(range(8))
        with self._opened() as tier:
            assert tier.load(path.namespace, path.keys) == []
            assert tier.load(path.namespace, []) == []

    def test_offered_records_are_loaded_in_path_order(self) -> None:
        """After `flush` has returned True, `load` returns every record whose `offer` returned True, byte for
        byte and in the order of `keys`. A tier that is up and has room takes a few small records."""
        path = _path(range(16))
        with self._opened() as tier:
            _offer(tier, path)
            found = tier.load(path.namespace, path.keys)
            assert found == path.records
            assert [type(record) for record in found] == [bytes] * 4
            assert tier.load(path.namespace, path.keys[:2]) == path.records[:2]

    def test_a_load_ends_at_the_first_chunk_that_is_missing(self) -> None:
        """`load` returns the longest held prefix of `keys`, and nothing after a gap: a chunk is of no use
        without those before it."""
        path = _path(range(16))
        other = _path(range(100, 104))
        with self._opened() as tier:
            for place in (0, 1, 3):
                tier.offer(path.namespace, path.keys[place], _maker(path.records[place]))
            assert tier.flush(_FLUSH_SECONDS)
            assert tier.load(path.namespace, path.keys) == path.records[:2]
            assert tier.load(path.namespace, [*other.keys, *path.keys]) == []

    def test_a_load_may_begin_within_a_path(self) -> None:
        """`keys` are the chunks that the device lacks, so they may begin anywhere in a path."""
        path = _path(range(16))
        with self._opened() as tier:
            _offer(tier, path)
            assert tier.load(path.namespace, path.keys[2:]) == path.records[2:]

    def test_namespaces_are_apart(self) -> None:
        """The same tokens in another namespace are a miss, and each namespace has its own records."""
        mine = _path(range(8))
        other = _path(
            range(8), Namespace("tenant:anyone", weights="other", chunk_tokens=SMALL_SHAPE.chunk_tokens)
        )
        with self._opened() as tier:
            _offer(tier, mine)
            assert tier.load(other.namespace, other.keys) == []
            _offer(tier, other)
            assert tier.load(mine.namespace, mine.keys) == mine.records
            assert tier.load(other.namespace, other.keys) == other.records

    def test_a_record_is_made_before_offer_returns(self) -> None:
        """`make` is called once if `offer` returns True and at most once if not, and never later: the slot
        that it reads may hold another chunk then."""
        path = _path(range(16))
        made: list[int] = []

        def make(place: int) -> bytes:
            made.append(place)
            return path.records[place]

        with self._opened() as tier:
            for place, key in enumerate(path.keys):
                is_taken = tier.offer(path.namespace, key, partial(make, place))
                assert made.count(place) == 1 or (made.count(place) == 0 and not is_taken)
            made_by_offers = list(made)
            assert tier.flush(_FLUSH_SECONDS)
            tier.load(path.namespace, path.keys)
        assert made == made_by_offers

    def test_a_record_may_be_offered_again(self) -> None:
        """A key that is queued or held is offered again with the same record, and is loaded once."""
        path = _path(range(8))
        with self._opened() as tier:
            _offer(tier, path, path)
            _offer(tier, path)
            assert tier.load(path.namespace, path.keys) == path.records

    def test_a_namespaces_own_record_is_taken(self) -> None:
        """A namespace's own record is offered under the first bytes of its digest, before its first chunk;
        chunks are loaded as without it."""
        path = _path(range(8))
        name = encode_namespace_record(path.namespace, created_at_seconds=1)
        with self._opened() as tier:
            assert tier.offer(path.namespace, path.namespace.digest[:KEY_BYTES], lambda: name)
            _offer(tier, path)
            assert tier.load(path.namespace, path.keys) == path.records

    def test_flush_says_whether_everything_is_written(self) -> None:
        """`flush` returns True where nothing is queued, and a bool, raising nothing, where no time is
        given."""
        path = _path(range(8))
        with self._opened() as tier:
            assert tier.flush(_FLUSH_SECONDS) is True
            for key, record in zip(path.keys, path.records):
                assert tier.offer(path.namespace, key, _maker(record))
            assert tier.flush(0.0) in (True, False)
            assert tier.flush(_FLUSH_SECONDS) is True

    def test_stats_are_numbers_by_name(self) -> None:
        """`stats` returns numbers by name, before and after use."""
        path = _path(range(8))
        with self._opened() as tier:
            before = tier.stats()
            _offer(tier, path)
            tier.load(path.namespace, path.keys)
            for stats in (before, tier.stats()):
                assert [name for name in stats if not isinstance(name, str)] == []
                assert [number for number in stats.values() if not isinstance(number, int | float)] == []

    def test_a_closed_tier_is_a_miss_or_an_outage(self) -> None:
        """After `close`, which may be called twice, `load` raises StoreError or returns `[]`, `offer` returns
        False, and `flush` and `stats` raise nothing: a request that is still running recomputes."""
        path = _path(range(8))
        tier = self.make_tier()
        _offer(tier, path)
        tier.close()
        tier.close()
        with contextlib.suppress(StoreError):
            assert tier.load(path.namespace, path.keys) == []
        assert tier.offer(path.namespace, path.keys[0], _maker(path.records[0])) is False
        tier.flush(0.0)
        tier.stats()


def _path(tokens: Sequence[int], namespace: Namespace | None = None) -> StoredPath:
    return StoredPath(namespace or Namespace("tenant:anyone", chunk_tokens=SMALL_SHAPE.chunk_tokens), tokens)


def _maker(record: bytes) -> Callable[[], bytes]:
    return lambda: record


def _offer(tier: LowerTier, *paths: StoredPath) -> None:
    """Offers every record of each path, which must be taken, and waits until all of them are written."""
    for path in paths:
        for key, record in zip(path.keys, path.records):
            assert tier.offer(path.namespace, key, _maker(record)) is True
    assert tier.flush(_FLUSH_SECONDS)
