"""Writing to a store behind the requests' back: bounded, and never the reason one waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError, StoreError
from kvtrie.store.breaker import CircuitBreaker
from kvtrie.store.contract import Store, check_keys
from kvtrie.store.per_process import PerProcess

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriteBehindStats:
    """Counts since the start, except for what is queued now. `offered` is the sum of all record counts."""

    queued_records: int
    """Records waiting or being written now."""
    queued_bytes: int
    """Their bytes, as offered."""
    written_records: int
    written_bytes: int
    coalesced: int
    """Offers of a key that was queued already."""
    dropped_full: int
    """Offers that did not fit the queue."""
    dropped_paused: int
    """Records not tried because the store had just failed or was full, or because the queue was closed."""
    dropped_error: int
    """Records that the store failed on or refused, or that could not be made."""


@dataclass(frozen=True, slots=True)
class _Offer:
    key: bytes
    make: Callable[[], bytes] | bytes
    size_bytes: int


class WriteBehind:
    """One daemon thread that puts offered records into `store`, which stays the caller's to close.

    Who holds what:
        offer(...) returned True    the queue holds the bytes, or `make` and all it refers to
        in a batch                  the thread holds it; its bytes still count as queued
        written or dropped          nobody; a drop is counted, and only costs a later miss

    After a failure or a full store offers are refused for `retry_after_seconds` and what is queued is let
    go: a queue that kept waiting would keep device slots and host memory for a store that may never return.

    A process that was forked begins with an empty queue, a thread of its own and counts of its own: what its
    parent has queued, the parent writes.

    Args:
        max_bytes: most bytes queued at once.
        batch_bytes: most bytes given to one `put_many` (but at least one record), so that a batch fits
            the store's deadline: 8 MiB is some 30 ms of Redis.

    Raises:
        InputError: a size or time that is not above 0.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_bytes: int = 256 << 20,
        batch_bytes: int = 8 << 20,
        retry_after_seconds: float = 1.0,
    ) -> None:
        if max_bytes < 1 or batch_bytes < 1:
            raise InputError(f"max_bytes and batch_bytes must be above 0, got {max_bytes} and {batch_bytes}")

        def open_queue(parents: _Queue | None) -> _Queue:
            # Always the same pause: stores that are costly to ask have an exponential one of their own.
            breaker = CircuitBreaker(
                retry_after_seconds=retry_after_seconds, longest_seconds=retry_after_seconds
            )
            is_closed = parents is not None and parents.is_closed
            return _Queue(store, breaker, max_bytes, batch_bytes, is_closed=is_closed)

        self._queues = PerProcess(open_queue)

    def offer(self, key: bytes, make: Callable[[], bytes] | bytes, *, size_bytes: int | None = None) -> bool:
        """Queues a record without waiting; False where it was dropped instead.

        `make` is the record, or makes it, once, in the writing thread; then `size_bytes` is the size of the
        record and of all that `make` keeps alive. A key that is queued already is not queued again.

        Raises:
            InputError: a bad key, or a `make` to call without its size.
        """
        check_keys((key,))
        if size_bytes is None:
            if callable(make):
                raise InputError("offer needs size_bytes where the record is yet to be made")
            size_bytes = len(make)
        if size_bytes < 0:
            raise InputError(f"size_bytes must not be negative, got {size_bytes}")
        return self._queues.get().offer(_Offer(key, make, size_bytes))

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until nothing is queued; False where that took longer.

        What was queued is then written or dropped: `stats` counts both.
        """
        return self._queues.get().flush(timeout_seconds)

    def stats(self) -> WriteBehindStats:
        """The counters at one moment."""
        return self._queues.get().stats()

    def close(self, timeout_seconds: float) -> bool:
        """Takes no more offers, writes what is queued, ends the thread; False where time ran out.

        Then what is still queued is dropped; a `put_many` under way ends by the store's own deadline.
        """
        return self._queues.get().close(timeout_seconds)


class _Queue:
    """One process's queue and its thread, which starts with the first offer."""

    def __init__(
        self, store: Store, breaker: CircuitBreaker, max_bytes: int, batch_bytes: int, *, is_closed: bool
    ) -> None:
        self.is_closed = is_closed
        self._store = store
        self._breaker = breaker
        self._max_bytes = max_bytes
        self._batch_bytes = batch_bytes
        self._changed = threading.Condition()
        self._queue: dict[bytes, _Offer] = {}
        self._writing: dict[bytes, _Offer] = {}
        self._queued_bytes = 0
        self._written_records = self._written_bytes = self._coalesced = 0
        self._dropped_full = self._dropped_paused = self._dropped_error = 0
        self._thread: threading.Thread | None = None

    def offer(self, offer: _Offer) -> bool:
        """See `WriteBehind.offer`."""
        paused = self._breaker.wait_seconds() > 0
        with self._changed:
            if self.is_closed or paused:
                self._dropped_paused += 1
                return False
            if offer.key in self._queue or offer.key in self._writing:
                self._coalesced += 1
                return True
            if self._queued_bytes + offer.size_bytes > self._max_bytes:
                self._dropped_full += 1
                return False
            self._queue[offer.key] = offer
            self._queued_bytes += offer.size_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvtrie-write-behind", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, timeout_seconds: float) -> bool:
        """See `WriteBehind.flush`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._writing, timeout_seconds)

    def stats(self) -> WriteBehindStats:
        """See `WriteBehind.stats`."""
        with self._changed:
            return WriteBehindStats(
                queued_records=len(self._queue) + len(self._writing),
                queued_bytes=self._queued_bytes,
                written_records=self._written_records,
                written_bytes=self._written_bytes,
                coalesced=self._coalesced,
                dropped_full=self._dropped_full,
                dropped_paused=self._dropped_paused,
                dropped_error=self._dropped_error,
            )

    def close(self, timeout_seconds: float) -> bool:
        """See `WriteBehind.close`."""
        end = time.monotonic() + timeout_seconds
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
        drained = self.flush(timeout_seconds)
        with self._changed:
            self._dropped_paused += len(self._queue)
            self._queued_bytes -= sum(offer.size_bytes for offer in self._queue.values())
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()))
        return drained

    def _run(self) -> None:
        while self._take_batch():
            self._write_batch()
            with self._changed:
                self._queued_bytes -= sum(offer.size_bytes for offer in self._writing.values())
                self._writing = {}
                self._changed.notify_all()

    def _take_batch(self) -> bool:
        """Moves the oldest offers to `_writing`, waiting for the first; False when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.is_closed)
            size = 0
            while self._queue:
                offer = next(iter(self._queue.values()))
                size += offer.size_bytes
                if self._writing and size > self._batch_bytes:
                    break
                self._writing[offer.key] = self._queue.pop(offer.key)
            return bool(self._writing)

    def _write_batch(self) -> None:
        """Makes and puts `_writing`, and counts how it went. Raises nothing: the thread must live."""
        # How long the one call after a pause may take is the store's affair: this thread is the only caller.
        ticket = self._breaker.enter(probe_seconds=0.0)
        if ticket is None:
            with self._changed:
                self._dropped_paused += len(self._writing)
            return
        made = [(offer.key, self._make(offer)) for offer in self._writing.values()]
        items = [(key, record) for key, record in made if record is not None]
        if not items:
            return
        try:
            self._store.put_many(items)
        except StoreError as error:
            self._breaker.failed(ticket)
            self._count_failed(items)
            _LOG.warning("%d records not written: %s", len(items), error)
        # Not an outage but a bug, here or in the store: loud, though still no reason to stop writing.
        except Exception:
            self._count_failed(items)
            _LOG.exception("%d records not written", len(items))
        else:
            self._breaker.succeeded(ticket)
            with self._changed:
                self._written_records += len(items)
                self._written_bytes += sum(len(record) for _, record in items)

    def _make(self, offer: _Offer) -> bytes | None:
        """The record of `offer`; None where making it failed, which is counted."""
        try:
            return offer.make() if callable(offer.make) else offer.make
        except Exception:
            self._count_failed([offer])
            _LOG.exception("record %s could not be made", offer.key.hex())
            return None

    def _count_failed(self, records: list[_Offer] | list[tuple[bytes, bytes]]) -> None:
        with self._changed:
            self._dropped_error += len(records)
