"""Write-behind: bounded, never in the way, and every record accounted for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvtrie.prefix_tree.errors import InputError, StoreFull, StoreUnavailable
from kvtrie.store import MemoryStore, RedisStore, WriteBehind

LONG_SECONDS = 20.0


class GatedStore(MemoryStore):
    """Holds every put until the gate opens; raises `error` where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.batches: list[int] = []

    def put_many(self, items) -> None:
        self.entered.set()
        assert self.gate.wait(LONG_SECONDS)
        self.batches.append(len(items))
        if self.error is not None:
            raise self.error
        super().put_many(items)


@pytest.fixture
def store() -> Iterator[GatedStore]:
    gated = GatedStore()
    yield gated
    gated.gate.set()


@pytest.fixture
def make_queue(store: GatedStore) -> Iterator[Callable[..., WriteBehind]]:
    queues: list[WriteBehind] = []

    def make(**settings: float) -> WriteBehind:
        queues.append(WriteBehind(store, **settings))
        return queues[-1]

    yield make
    store.gate.set()
    for queue in queues:
        queue.close(LONG_SECONDS)


def occupy(queue: WriteBehind, store: GatedStore) -> None:
    """Makes the thread wait at the gate with one record of one byte."""
    assert queue.offer(b"first", b"1")
    assert store.entered.wait(LONG_SECONDS)


def test_offers_are_written(store, make_queue) -> None:
    queue = make_queue()
    store.gate.set()
    assert queue.offer(b"a", b"one")
    assert queue.offer(b"b", lambda: b"three", size_bytes=5)
    assert queue.flush(LONG_SECONDS)
    assert store.get_many([b"a", b"b"]) == [b"one", b"three"]
    stats = queue.stats()
    assert (stats.written_records, stats.written_bytes, stats.queued_records, stats.queued_bytes) == (
        2,
        8,
        0,
        0,
    )


def test_a_full_queue_drops_at_once(store, make_queue) -> None:
    queue = make_queue(max_bytes=10)
    occupy(queue, store)
    assert queue.offer(b"a", bytes(9))
    assert not queue.offer(b"b", b"x")
    assert not queue.offer(b"c", bytes(11))
    assert queue.stats().queued_bytes == 10
    assert queue.stats().dropped_full == 2
    assert not queue.flush(0.01)
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    assert queue.offer(b"b", bytes(10))
    assert queue.flush(LONG_SECONDS)
    assert sorted(store.scan()) == [b"a", b"b", b"first"]


def test_a_queued_key_is_not_queued_twice(store, make_queue) -> None:
    queue = make_queue()
    occupy(queue, store)
    made: list[str] = []

    def make() -> bytes:
        made.append("once")
        return b"value"

    assert queue.offer(b"a", make, size_bytes=5)
    assert queue.offer(b"a", make, size_bytes=5)
    assert queue.offer(b"first", b"being written")
    stats = queue.stats()
    assert (stats.coalesced, stats.queued_records, stats.queued_bytes) == (2, 2, 6)
    assert made == []
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    assert made == ["once"]
    assert store.get_many([b"first", b"a"]) == [b"1", b"value"]
    assert queue.offer(b"a", b"again")
    assert queue.flush(LONG_SECONDS)
    assert store.get_many([b"a"]) == [b"again"]


def test_batches_are_bounded_but_hold_at_least_one(store, make_queue) -> None:
    queue = make_queue(batch_bytes=10)
    occupy(queue, store)
    for n, size in enumerate((4, 4, 4, 50, 1)):
        assert queue.offer(b"%d" % n, bytes(size))
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    assert store.batches == [1, 2, 1, 1, 1]


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreFull("full")])
def test_a_failing_store_pauses_the_queue_and_is_tried_again(store, make_queue, error: Exception) -> None:
    queue = make_queue(batch_bytes=1, retry_after_seconds=0.3)
    store.error = error
    occupy(queue, store)
    assert queue.offer(b"a", b"queued before the failure")
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    # Refused while paused; how long the machine took to come here decides which, so read the counters.
    refused = not queue.offer(b"b", b"offered after it")
    assert queue.flush(LONG_SECONDS)
    stats = queue.stats()
    assert stats.dropped_error >= 1
    assert stats.dropped_error + stats.dropped_paused == 3
    assert (stats.written_records, stats.queued_bytes) == (0, 0)
    assert stats.dropped_paused >= refused
    store.error = None
    end = time.monotonic() + LONG_SECONDS
    while not queue.offer(b"c", b"back"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert queue.flush(LONG_SECONDS)
    assert list(store.scan()) == [b"c"]
    assert queue.stats().written_records == 1


def test_while_paused_nothing_is_made_or_put(store, make_queue) -> None:
    queue = make_queue(batch_bytes=1, retry_after_seconds=3600.0)
    store.error = StoreUnavailable("down")
    occupy(queue, store)
    made: list[int] = []
    assert queue.offer(b"a", lambda: made.append(1) or b"", size_bytes=1)
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    assert not queue.offer(b"b", b"x")
    assert store.batches == [1]
    assert made == []
    stats = queue.stats()
    assert (stats.dropped_error, stats.dropped_paused) == (1, 2)


def test_a_store_that_is_wrong_does_not_end_the_thread(store, make_queue, caplog) -> None:
    queue = make_queue()
    store.error = RuntimeError("a bug")
    store.gate.set()
    assert queue.offer(b"a", b"x")
    assert queue.flush(LONG_SECONDS)
    assert queue.stats().dropped_error == 1
    assert "a bug" in caplog.text
    store.error = None
    assert queue.offer(b"b", b"x")
    assert queue.flush(LONG_SECONDS)
    assert list(store.scan()) == [b"b"]


def test_a_record_that_cannot_be_made_costs_only_itself(store, make_queue, caplog) -> None:
    queue = make_queue()
    occupy(queue, store)

    def fail() -> bytes:
        raise RuntimeError("no slot")

    assert queue.offer(b"bad", fail, size_bytes=3)
    assert queue.offer(b"good", b"x")
    store.gate.set()
    assert queue.flush(LONG_SECONDS)
    assert sorted(store.scan()) == [b"first", b"good"]
    assert queue.stats().dropped_error == 1
    assert "no slot" in caplog.text


def test_close_writes_what_is_queued_and_takes_no_more(store, make_queue) -> None:
    queue = make_queue()
    store.gate.set()
    queue.offer(b"a", b"x")
    assert queue.close(LONG_SECONDS)
    assert queue.close(LONG_SECONDS)
    assert not queue.offer(b"b", b"x")
    assert queue.stats().dropped_paused == 1
    assert list(store.scan()) == [b"a"]


def test_close_gives_up_on_a_store_that_hangs(store, make_queue) -> None:
    queue = make_queue(batch_bytes=1)
    occupy(queue, store)
    queue.offer(b"a", b"xyz")
    assert not queue.close(0.05)
    stats = queue.stats()
    assert (stats.dropped_paused, stats.queued_records, stats.queued_bytes) == (1, 1, 1)


def test_every_offer_is_accounted_for(store, make_queue) -> None:
    """From several threads, against a store that fails now and then."""
    queue = make_queue(max_bytes=400, batch_bytes=50, retry_after_seconds=0.001)
    store.gate.set()
    offered = 4 * 300

    def offer(name: int) -> None:
        for n in range(300):
            store.error = StoreUnavailable("now and then") if n % 50 == 49 else None
            queue.offer(b"%d" % (n % 20), lambda: b"x" * (name + 1), size_bytes=name + 1)

    threads = [threading.Thread(target=offer, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.flush(LONG_SECONDS)
    stats = queue.stats()
    settled = stats.written_records + stats.coalesced
    assert settled + stats.dropped_full + stats.dropped_paused + stats.dropped_error == offered
    assert (stats.queued_records, stats.queued_bytes) == (0, 0)


def test_a_redis_that_dies_and_returns(redis_server) -> None:
    store = RedisStore(
        redis_server.url, deadline_seconds=2.0, retry_after_seconds=0.01, longest_retry_seconds=0.1
    )
    queue = WriteBehind(store, retry_after_seconds=0.01)
    assert queue.offer(b"a", b"1")
    assert queue.flush(LONG_SECONDS)
    redis_server.kill()
    end = time.monotonic() + LONG_SECONDS
    while queue.stats().dropped_error == 0:
        queue.offer(b"b", b"2")
        assert time.monotonic() < end
        time.sleep(0.01)
    redis_server.restart()
    while queue.stats().written_records < 2:
        queue.offer(b"c", b"3")
        assert time.monotonic() < end
        time.sleep(0.01)
    assert queue.close(LONG_SECONDS)
    assert store.get_many([b"c"]) == [b"3"]
    store.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_bytes": 0}, "got 0 and"),
        ({"batch_bytes": 0}, "and 0"),
        ({"retry_after_seconds": 0.0}, "retry_after_seconds"),
    ],
)
def test_sizes_and_times_that_cannot_work_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WriteBehind(MemoryStore(), **settings)


def test_offers_that_cannot_work_are_named(store, make_queue) -> None:
    queue = make_queue()
    with pytest.raises(InputError, match="1 to 64 bytes"):
        queue.offer(b"", b"x")
    with pytest.raises(InputError, match="size_bytes"):
        queue.offer(b"a", lambda: b"x")
    with pytest.raises(InputError, match="not be negative"):
        queue.offer(b"a", lambda: b"x", size_bytes=-1)
    assert queue.stats().queued_records == 0
