"""What every store must do: one suite, and one random walk against a dict, run on each of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis import Redis

from kvtrie.prefix_tree.errors import InputError, StoreUnavailable
from kvtrie.store import MemoryStore, RedisStore, Store

MakeStore = Callable[[], Store]


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
                with Redis.from_url(server.url) as redis:
                    redis.flushall()
                url = server.url if request.param == "redis" else f"redis+unix://{server.socket_path}"
                store = RedisStore(url, deadline_seconds=10.0)
            cleanup.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def test_a_miss_is_none(store: Store) -> None:
    assert store.get_many([b"absent", b"gone"]) == [None, None]


def test_values_come_back_in_the_order_of_the_keys(store: Store) -> None:
    store.put_many([(b"a", b"1"), (b"b", b"2")])
    assert store.get_many([b"b", b"absent", b"a", b"b"]) == [b"2", None, b"1", b"2"]


def test_the_later_value_stays(store: Store) -> None:
    store.put_many([(b"a", b"1"), (b"a", b"2")])
    assert store.get_many([b"a"]) == [b"2"]
    store.put_many([(b"a", b"3")])
    assert store.get_many([b"a"]) == [b"3"]


def test_nothing_asked_is_nothing_done(store: Store) -> None:
    store.put_many([])
    assert store.get_many([]) == []
    assert store.delete_many([]) == 0
    assert list(store.scan()) == []


def test_delete_counts_what_there_was(store: Store) -> None:
    store.put_many([(b"a", b"1"), (b"b", b"")])
    assert store.delete_many([b"a", b"absent", b"a", b"b"]) == 2
    assert store.get_many([b"a", b"b"]) == [None, None]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64])
def test_any_bytes_are_a_key(store: Store, length: int) -> None:
    keys = [bytes([byte]) * length for byte in (0, 10, 13, 42, 91, 255)]
    store.put_many([(key, key + b"!") for key in keys])
    assert store.get_many(keys) == [key + b"!" for key in keys]
    assert sorted(set(store.scan())) == sorted(keys)


def test_a_prefix_of_a_key_is_another_key(store: Store) -> None:
    store.put_many([(b"ab", b"long"), (b"a", b"short")])
    assert store.delete_many([b"a"]) == 1
    assert store.get_many([b"a", b"ab"]) == [None, b"long"]


@pytest.mark.parametrize("key", [b"", bytes(65), "text", bytearray(b"a")])
def test_other_keys_are_named(store: Store, key: object) -> None:
    for call in (
        lambda: store.get_many([b"fine", key]),
        lambda: store.put_many([(b"fine", b""), (key, b"")]),
        lambda: store.delete_many([b"fine", key]),
    ):
        with pytest.raises(InputError, match="1 to 64 bytes"):
            call()
    assert store.get_many([b"fine"]) == [None]


def test_values_are_any_bytes_of_any_size(store: Store) -> None:
    """Small and large mixed, so that every way of batching is taken; more keys than one batch has."""
    sizes = [0, 1, 65_535, 65_536, 65_537, 300_000, 3_000_000, 5, 7] + [9] * 200 + [200_000] * 5
    items = [(b"%d" % n, (b"%d\r\n$" % n * size)[:size]) for n, size in enumerate(sizes)]
    store.put_many(items)
    assert store.get_many([key for key, _ in items]) == [value for _, value in items]
    assert store.get_many([b"absent%d" % n for n in range(200)]) == [None] * 200


def test_scan_names_every_key(store: Store) -> None:
    keys = {b"%d" % n for n in range(2500)}
    store.put_many([(key, b"x") for key in keys])
    assert set(store.scan()) == keys


def test_a_view_is_stored_as_bytes(store: Store) -> None:
    buffer = bytearray(b"before")
    store.put_many([(b"a", memoryview(buffer))])  # type: ignore[list-item]
    buffer[:] = b"after!"
    assert store.get_many([b"a"]) == [b"before"]


def test_a_closed_store_is_unavailable(store: Store) -> None:
    store.put_many([(b"a", b"1")])
    store.close()
    store.close()
    for call in (
        lambda: store.get_many([b"a"]),
        lambda: store.put_many([(b"a", b"1")]),
        lambda: store.delete_many([b"a"]),
        lambda: list(store.scan()),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()


def test_threads_do_not_get_each_others_answers(store: Store) -> None:
    wrong: list[object] = []

    def work(name: int) -> None:
        for turn in range(30):
            items = [(b"%d-%d" % (name, n), b"%d-%d-%d" % (name, n, turn)) for n in range(5)]
            store.put_many(items)
            if store.get_many([key for key, _ in items]) != [value for _, value in items]:
                wrong.append((name, turn))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(store.scan())) == 30


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
