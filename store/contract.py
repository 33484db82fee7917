"""The contract of a store: bytes by key. The engine uses one as a lower tier (`api/tiers/store_tier.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from kvtrie.prefix_tree.errors import InputError

KEY_LENGTHS = range(1, 65)


class Store(Protocol):
    """Records by key. Safe to call from several threads; every wait has a deadline.

    A key is 1 to 64 bytes, in kvtrie a chunk key. Keys are digests of content, so whoever writes a key
    twice writes the same value; where values differ nonetheless, the later one stays. Values are opaque:
    a store neither reads nor checks them, its readers do (`expect_record`).

    Every method may raise:
        StoreUnavailable: unreachable, past its deadline, or closed. A miss is never reported this way.
        InputError: a key is not 1 to 64 bytes. `check_keys` raises it, before anything is stored.

    `kvtrie.testing.StoreContract` checks an implementation, rule by rule.
    """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, in the order of `keys`; None where there is none."""

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Stores each (key, value). After an error any part of `items` may have been stored.

        Raises:
            StoreFull: the store has no room for one of them.
        """

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Deletes `keys`; returns how many of them were stored."""

    def scan(self) -> Iterator[bytes]:
        """Every key, in no order. A key written or deleted meanwhile may be missing, or repeated."""

    def close(self) -> None:
        """Ends connections and frees memory. May be called twice."""


def check_keys(keys: Iterable[bytes]) -> None:
    """Raises InputError for the first key that is not 1 to 64 bytes."""
    for key in keys:
        if not isinstance(key, bytes) or len(key) not in KEY_LENGTHS:
            raise InputError(f"a store key is 1 to 64 bytes, got {key!r}")
