"""The published contract of stores, run on each of ours, and a random walk that shrinks its failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from kvtrie.prefix_tree.errors import StoreUnavailable
from kvtrie.store import MemoryStore, RedisStore, Store, WriteBehind
from kvtrie.store.contract import check_keys
from kvtrie.testing import StoreContract

MakeStore = Callable[[], Store]
LONG_SECONDS = 20.0


class WrittenBehind:
    """A store whose every value passes through a write-behind queue; each put waits until it is written."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self._behind = WriteBehind(self._store)
        self.get_many, self.delete_many = self._store.get_many, self._store.delete_many
        self.scan = self._store.scan

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        check_keys(key for key, _ in items)
        for key, value in items:
            if not self._behind.offer(key, value):
                raise StoreUnavailable("the queue is closed")
            assert self._behind.flush(LONG_SECONDS)

    def close(self) -> None:
        self._behind.close(LONG_SECONDS)
        self._store.close()


class TestMemoryStore(StoreContract):
    def make_store(self) -> Store:
        return MemoryStore()


class TestWriteBehind(StoreContract):
    def make_store(self) -> Store:
        return WrittenBehind()


class TestRedisStore(StoreContract):
    @pytest.fixture(autouse=True, params=["redis", "redis over a socket"])
    def _server(self, request: pytest.FixtureRequest, redis_server) -> None:
        self.make_store = lambda: emptied_redis(redis_server, request.param == "redis over a socket")


def emptied_redis(server, over_a_socket: bool) -> RedisStore:
    with Redis.from_url(server.url) as redis:
        redis.flushall()
    return RedisStore(
        f"redis+unix://{server.socket_path}" if over_a_socket else server.url, deadline_seconds=10.0
    )


@pytest.fixture(params=["memory", "redis", "redis over a socket"])
def make_store(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Makes a store that is empty."""
    with contextlib.ExitStack() as cleanup:

        def make() -> Store:
            store: Store
            if request.param == "memory":
                store = MemoryStore()
            else:
                server = request.getfixturevalue("redis_server")
                store = emptied_redis(server, request.param == "redis over a socket")
            cleanup.callback(store.close)
            return store

        yield make


def test_any_sequence_of_calls_is_a_dicts(make_store: MakeStore) -> None:
    keys = st.one_of(st.sampled_from([b"a", b"ab", b"b"]), st.binary(min_size=1, max_size=64))

    class AgainstADict(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.store = make_store()
            self.model: dict[bytes, bytes] = {}

        @rule(items=st.lists(st.tuples(keys, st.binary(max_size=100)), max_size=5))
        def put(self, items: list[tuple[bytes, bytes]]) -> None:
            self.store.put_many(items)
            self.model.update(items)

        @rule(asked=st.lists(keys, max_size=5))
        def get(self, asked: list[bytes]) -> None:
            assert self.store.get_many(asked) == [self.model.get(key) for key in asked]

        @rule(asked=st.lists(keys, max_size=5))
        def delete(self, asked: list[bytes]) -> None:
            present = {key for key in asked if key in self.model}
            assert self.store.delete_many(asked) == len(present)
            for key in present:
                del self.model[key]

        @invariant()
        def same_contents(self) -> None:
            held = sorted(self.model)
            assert sorted(set(self.store.scan())) == held
            assert self.store.get_many(held) == [self.model[key] for key in held]

        def teardown(self) -> None:
            self.store.close()

    run_state_machine_as_test(
        AgainstADict,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
