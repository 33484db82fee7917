"""Stores in a forked child: connections, locks and threads of its own; nothing of the parent's is disturbed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from kvtrie.prefix_tree.errors import StoreUnavailable
from kvtrie.store import MemoryStore, RedisStore, WriteBehind
from kvtrie.store.per_process import PerProcess
from tests.forked import fork

SECONDS = 20.0


def reads(store: RedisStore, keys: list[bytes], times: int = 300) -> int:
    """How many answers were another key's: each value is its key, repeated."""
    wrong = 0
    for _ in range(times):
        for key, value in zip(keys, store.get_many(keys)):
            wrong += value != key * 50
    return wrong


@pytest.fixture
def server(redis_server: Any) -> redis.Redis:
    """A plain client beside the store, to ask Redis itself."""
    return redis.Redis(port=redis_server.port)


def connections_made(server: redis.Redis) -> int:
    return int(server.info("stats")["total_connections_received"])


class TestRedis:
    def test_parent_and_child_get_their_own_answers(self, redis_server: Any, server: redis.Redis) -> None:
        store = RedisStore(redis_server.url)
        mine, other = [b"parent%d" % n for n in range(20)], [b"child%d" % n for n in range(20)]
        store.put_many([(key, key * 50) for key in mine + other])
        before = connections_made(server)
        children = [fork(lambda: (reads(store, other), store.close())) for _ in range(3)]
        wrong = reads(store, mine)
        assert [child.result() for child in children] == [(0, None)] * 3
        assert wrong == 0
        assert reads(store, mine, 1) == 0, "after the children have closed theirs"
        assert connections_made(server) - before == 3, "one of each child, and the parent has kept its own"
        store.close()

    def test_a_lock_held_at_the_fork_does_not_hang_the_child(self, redis_server: Any) -> None:
        store = RedisStore(redis_server.url)
        store.put_many([(b"key", b"value")])
        held = [store._pools.get()._lock, store._pools.get().breaker._lock]
        for lock in held:
            lock.acquire()
        child = fork(lambda: (store.get_many([b"key"]), store.close()))
        for lock in held:
            lock.release()
        assert child.result() == ([b"value"], None)
        assert store.get_many([b"key"]) == [b"value"]
        store.close()

    def test_closing_in_a_child_that_asked_nothing(self, redis_server: Any, server: redis.Redis) -> None:
        store = RedisStore(redis_server.url)
        store.put_many([(b"key", b"value")])
        before = connections_made(server)
        assert fork(lambda: (store.close(), store.close())).result() == (None, None)
        assert store.get_many([b"key"]) == [b"value"]
        assert connections_made(server) == before
        store.close()

    def test_closed_stays_closed(self, redis_server: Any) -> None:
        store = RedisStore(redis_server.url)
        store.close()

        def ask() -> str:
            with pytest.raises(StoreUnavailable) as caught:
                store.get_many([b"key"])
            return str(caught.value)

        assert fork(ask).result().endswith("closed")


class SlowStore(MemoryStore):
    """Holds puts until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def put_many(self, items) -> None:
        self.entered.set()
        assert self.gate.wait(SECONDS)
        super().put_many(items)


class TestWriteBehind:
    def test_a_child_writes_its_own_and_leaves_the_parents(self, redis_server: Any) -> None:
        store = RedisStore(redis_server.url)
        behind = WriteBehind(store)
        assert behind.offer(b"first", b"parent")
        assert behind.flush(SECONDS)

        def work() -> tuple[Any, ...]:
            before = behind.stats()
            taken = behind.offer(b"child", b"wrote this")
            flushed = behind.flush(SECONDS)
            after = behind.stats()
            return before.written_records, taken, flushed, after.written_records, behind.close(SECONDS)

        assert fork(work).result() == (0, True, True, 1, True)
        assert store.get_many([b"child"]) == [b"wrote this"]
        assert behind.offer(b"second", b"parent")
        assert behind.flush(SECONDS)
        assert behind.stats().written_records == 2
        assert behind.close(SECONDS)
        store.close()

    def test_what_the_parent_has_queued_is_not_written_or_waited_for_by_the_child(self) -> None:
        store = SlowStore()
        behind = WriteBehind(store)
        assert behind.offer(b"writing", b"1")
        assert store.entered.wait(SECONDS)
        assert behind.offer(b"queued", b"2")
        # The condition, too, as if the thread were just looking at its queue.
        with behind._queues.get()._changed:
            child = fork(lambda: (behind.stats().queued_records, behind.flush(0.0), behind.close(0.0)))
        assert child.result() == (0, True, True)
        store.gate.set()
        assert behind.flush(SECONDS)
        assert behind.stats().written_records == 2
        assert behind.close(SECONDS)

    def test_a_queue_that_was_closed_takes_nothing_in_a_child(self) -> None:
        behind = WriteBehind(MemoryStore())
        assert behind.close(SECONDS)
        assert fork(lambda: behind.offer(b"key", b"value")).result() is False


def test_a_memory_store_s_lock_does_not_hang_the_child() -> None:
    store = MemoryStore()
    store.put_many([(b"key", b"value")])
    with store._locks.get():
        child = fork(lambda: store.get_many([b"key"]))
    assert child.result() == [b"value"]


class TestPerProcess:
    def test_a_child_makes_its_own_once_and_sees_its_parent_s(self) -> None:
        def make(parents: list[int] | None) -> list[int]:
            return [*(parents or []), os.getpid()]

        value = PerProcess(make)
        here = os.getpid()

        def work() -> tuple[list[int], bool, int, list[int]]:
            first = value.get()
            return first, value.get() is first, os.getpid(), fork(value.get).result()

        found, same, child, grandchilds = fork(work).result()
        assert found == [here, child]
        assert same
        assert grandchilds[:2] == [here, child]
        assert len(grandchilds) == 3
        assert value.get() == [here]

    def test_threads_of_a_child_get_one_value(self) -> None:
        value: PerProcess[list[int]] = PerProcess(lambda _: [])

        def work() -> int:
            ready, found = threading.Barrier(8), []

            def ask() -> None:
                ready.wait(SECONDS)
                found.append(value.get())

            threads = [threading.Thread(target=ask) for _ in range(8)]
            started: list[Callable[[], None]] = [thread.start for thread in threads]
            for start in started:
                start()
            for thread in threads:
                thread.join(SECONDS)
            return len({id(one) for one in found})

        assert fork(work).result() == 1
