"""A store in this process's memory: for tests, and for one process that wants a host tier."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from kvtrie.prefix_tree.errors import InputError, StoreFull, StoreUnavailable
from kvtrie.store.contract import check_keys
from kvtrie.store.per_process import PerProcess


class MemoryStore:
    """A dict of records behind a lock. It evicts nothing: when it is full, `put_many` raises StoreFull.

    Args:
        capacity_bytes: keys and values together never exceed this; None is no limit.

    Raises:
        InputError: a negative capacity.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        if capacity_bytes is not None and capacity_bytes < 0:
            raise InputError(f"capacity_bytes must not be negative, got {capacity_bytes}")
        self._capacity_bytes = capacity_bytes
        # A forked child has a copy of the dict, and no thread of the parent that would open its lock.
        self._locks: PerProcess[threading.Lock] = PerProcess(lambda _: threading.Lock())
        self._values: dict[bytes, bytes] = {}
        self._used_bytes = 0
        self._closed = False

    @property
    def used_bytes(self) -> int:
        """Bytes of all keys and values held."""
        return self._used_bytes

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`."""
        check_keys(keys)
        with self._locks.get():
            self._check_open()
            return [self._values.get(key) for key in keys]

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Store`. Items before the one that did not fit are stored."""
        check_keys(key for key, _ in items)
        with self._locks.get():
            self._check_open()
            for key, value in items:
                held = self._values.get(key)
                more = len(value) - len(held) if held is not None else len(key) + len(value)
                if self._capacity_bytes is not None and self._used_bytes + more > self._capacity_bytes:
                    raise StoreFull(
                        f"memory store: {self._used_bytes} of {self._capacity_bytes} bytes used, "
                        f"no room for {len(value)} bytes under {key.hex()}"
                    )
                # bytes() copies only what is not bytes already: a view must not keep an arena alive.
                self._values[key] = bytes(value)
                self._used_bytes += more

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """See `Store`."""
        check_keys(keys)
        with self._locks.get():
            self._check_open()
            removed = 0
            for key in keys:
                value = self._values.pop(key, None)
                if value is not None:
                    self._used_bytes -= len(key) + len(value)
                    removed += 1
            return removed

    def scan(self) -> Iterator[bytes]:
        """See `Store`. The keys are those of the moment of the call."""
        with self._locks.get():
            self._check_open()
            return iter(list(self._values))

    def close(self) -> None:
        """See `Store`. Everything held is forgotten."""
        with self._locks.get():
            self._closed = True
            self._values.clear()
            self._used_bytes = 0

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("memory store: closed")
