"""Redis that dies, hangs, refuses or lies: StoreUnavailable within the deadline, never a wrong answer.

Elapsed times are asserted only against the deadline contract, with room for a busy machine.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from kvtrie.prefix_tree.errors import StoreFull, StoreUnavailable
from kvtrie.store import RedisStore

DEADLINE_SECONDS = 0.25
ROOM_SECONDS = 2.0

CALLS: dict[str, Callable[[RedisStore], object]] = {
    "get": lambda store: store.get_many([b"a", b"b"]),
    "put": lambda store: store.put_many([(b"a", b"x" * 1000), (b"b", b"y")]),
    "put much": lambda store: store.put_many([(b"a", bytes(64 << 20))]),
    "delete": lambda store: store.delete_many([b"a"]),
    "scan": lambda store: list(store.scan()),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def patient(url: str, **settings: float) -> RedisStore:
    """A store with a short deadline that tries again soon."""
    defaults = {"retry_after_seconds": 0.01, "longest_retry_seconds": 0.05}
    return RedisStore(url, deadline_seconds=DEADLINE_SECONDS, **{**defaults, **settings})


def assert_unavailable(call: Callable[[], object]) -> str:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        call()
    assert time.monotonic() - started < DEADLINE_SECONDS + ROOM_SECONDS
    return str(caught.value)


def until_available(call: Callable[[], object]) -> object:
    """What `call` returns once the store is back."""
    end = time.monotonic() + 20.0
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


class FakeServer:
    """Accepts on a loopback port and lets `talk` have each connection, in a thread of its own."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self.accepted = 0
        self._talk = talk
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:  # the peer was first
                one.close()
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._talk(connection)
        except OSError:  # the client hung up, which is what most tests are about
            connection.close()


@pytest.fixture
def fake_server() -> Iterator[Callable[[Callable[[socket.socket], None]], FakeServer]]:
    servers: list[FakeServer] = []

    def start(talk: Callable[[socket.socket], None]) -> FakeServer:
        servers.append(FakeServer(talk))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def commands(connection: socket.socket) -> Iterator[bytes]:
    """The names of the commands that arrive, one by one."""
    with connection.makefile("rb") as lines:
        for line in lines:
            words = []
            for _ in range(int(line[1:])):
                size = int(lines.readline()[1:])
                words.append(lines.read(size + 2)[:-2])
            yield words[0]


class TestRealServer:
    @every_call
    def test_nothing_listens(self, redis_server, call) -> None:
        redis_server.kill()
        assert_unavailable(lambda: call(patient(redis_server.url)))

    @every_call
    def test_killed_between_calls_and_restarted(self, redis_server, call) -> None:
        store = patient(redis_server.url)
        store.put_many([(b"a", b"1")])
        redis_server.kill()
        assert_unavailable(lambda: call(store))
        redis_server.restart()
        assert until_available(lambda: store.get_many([b"a"])) == [None]
        store.put_many([(b"a", b"2")])
        assert store.get_many([b"a"]) == [b"2"]

    @every_call
    def test_stopped_and_continued(self, redis_server, call) -> None:
        store = patient(redis_server.url)
        store.put_many([(b"a", b"1"), (b"other", b"right")])
        redis_server.stop()
        assert_unavailable(lambda: call(store))
        redis_server.cont()
        assert until_available(lambda: store.get_many([b"other"])) == [b"right"]
        store.close()

    def test_stopped_before_the_first_connection(self, redis_server) -> None:
        redis_server.stop()
        assert_unavailable(lambda: patient(redis_server.url).get_many([b"a"]))

    def test_a_restart_between_calls_is_not_an_outage(self, redis_server) -> None:
        """A kept connection that the peer has closed is replaced, not reported."""
        store = patient(redis_server.url)
        store.put_many([(b"a", b"1")])
        redis_server.restart()
        assert store.get_many([b"a"]) == [None]

    def test_late_answers_reach_nobody(self, redis_server) -> None:
        store = patient(redis_server.url)
        items = [(b"%d" % n, b"value %d" % n) for n in range(20)]
        store.put_many(items)
        redis_server.stop()
        assert_unavailable(lambda: store.get_many([items[0][0]]))
        redis_server.cont()
        for key, value in items[1:]:
            assert until_available(lambda asked=key: store.get_many([asked])) == [value]

    def test_killed_under_load(self, redis_server) -> None:
        """From several threads: each answer is right or an outage, before, during and after."""
        store = patient(redis_server.url)
        values = {b"%d" % n: (b"%d," % n) * 20_000 for n in range(8)}
        store.put_many(list(values.items()))
        wrong: list[object] = []
        seen = {"hit": 0, "outage": 0}
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                try:
                    for key, value in zip(values, store.get_many(list(values)), strict=True):
                        if value not in (None, values[key]):
                            wrong.append(key)
                    seen["hit"] += 1
                except StoreUnavailable:
                    seen["outage"] += 1
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20.0
        while seen["hit"] < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        redis_server.kill()
        while not seen["outage"] and time.monotonic() < deadline:
            time.sleep(0.01)
        redis_server.restart()
        hits = seen["hit"]
        while seen["hit"] == hits and time.monotonic() < deadline:
            time.sleep(0.01)
        over.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert seen["outage"] > 0
        assert seen["hit"] > hits

    def test_out_of_memory_is_full_not_down(self, redis_server) -> None:
        store = patient(redis_server.url)
        store.put_many([(b"a", b"1")])
        with Redis.from_url(redis_server.url) as redis:
            redis.config_set("maxmemory-policy", "noeviction")
            redis.config_set("maxmemory", "1")
            with pytest.raises(StoreFull, match="maxmemory"):
                store.put_many([(b"%d" % n, b"x" * 1000) for n in range(300)])
            assert store.get_many([b"a", b"0"]) == [b"1", None]
            assert store.delete_many([b"a"]) == 1
            redis.config_set("maxmemory", "0")
        store.put_many([(b"a", b"2")])
        assert store.get_many([b"a"]) == [b"2"]

    def test_a_wrong_password_is_an_outage_that_does_not_show_it(self, start_redis) -> None:
        server = start_redis("--requirepass", "open sesame")
        host = server.url.removeprefix("redis://")
        right = patient(f"redis://:open%20sesame@{host}")
        right.put_many([(b"a", b"1")])
        assert right.get_many([b"a"]) == [b"1"]
        wrong = patient(f"redis://:hunter2@{host}")
        message = assert_unavailable(lambda: wrong.get_many([b"a"]))
        assert "hunter2" not in message
        assert "AuthenticationError" in message
        assert "Authentication" in assert_unavailable(lambda: patient(server.url).get_many([b"a"]))

    def test_a_read_only_replica_is_an_outage_for_writers(self, start_redis) -> None:
        server = start_redis("--replicaof", "127.0.0.1", "1", "--replica-read-only", "yes")
        assert "read only" in assert_unavailable(lambda: patient(server.url).put_many([(b"a", b"1")]))

    def test_databases_are_apart(self, redis_server) -> None:
        zero, three = patient(redis_server.url), patient(redis_server.url + "/3")
        zero.put_many([(b"a", b"zero")])
        three.put_many([(b"a", b"three")])
        assert zero.get_many([b"a"]) == [b"zero"]
        assert three.get_many([b"a"]) == [b"three"]

    def test_prefixes_are_apart_even_if_they_look_like_patterns(self, redis_server) -> None:
        star = RedisStore(redis_server.url, prefix="*:")
        plain = RedisStore(redis_server.url)
        star.put_many([(b"a", b"star")])
        plain.put_many([(b"b", b"plain")])
        assert list(star.scan()) == [b"a"]
        assert list(plain.scan()) == [b"b"]
        assert plain.get_many([b"a"]) == [None]

    def test_the_names_are_the_documented_ones(self, redis_server) -> None:
        RedisStore(redis_server.url).put_many([(bytes(range(16)), b"value")])
        with Redis.from_url(redis_server.url) as redis:
            assert redis.keys() == [b"kvtrie:1:000102030405060708090a0b0c0d0e0f"]
            assert redis.get(b"kvtrie:1:000102030405060708090a0b0c0d0e0f") == b"value"

    def test_what_others_put_under_our_prefix_is_a_miss(self, redis_server) -> None:
        store = patient(redis_server.url)
        with Redis.from_url(redis_server.url) as redis:
            redis.lpush("kvtrie:1:" + b"list".hex(), "x")
            for name in ("zz", "AB", "a", "", " 61", "61 ", "61" * 65):
                redis.set("kvtrie:1:" + name, "x")
        assert store.get_many([b"list", b"absent"]) == [None, None]
        assert list(store.scan()) == [b"list"]
        store.put_many([(b"list", b"now ours")])
        assert store.get_many([b"list"]) == [b"now ours"]


class TestLyingServer:
    @pytest.mark.parametrize(
        "garbage",
        [
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            bytes(64),
            b"$-5\r\n",
            b"$x\r\n",
            b"*-9\r\n",
            b"*x\r\n",
            b":5\r\n" * 9,
            b":x\r\n",
            b"$99999999999999\r\nx",
            b"*4294967295\r\n",
            b"*1\r\n" * 5000,
            b">2\r\n+invalidate\r\n*0\r\n" * 500,
            b"-ERR no\r\n" * 9,
            b"-\xff\xfe\r\n" * 9,
            b"-LOADING Redis is loading the dataset in memory\r\n" * 9,
            b"+" + b"x" * 100_000,
            b"*0\r\n" * 9,
            b"",
        ],
    )
    @every_call
    def test_garbage_is_an_outage(self, fake_server, garbage: bytes, call) -> None:
        def talk(connection: socket.socket) -> None:
            connection.recv(1)
            connection.sendall(garbage)
            while connection.recv(1 << 16):
                pass  # keeps reading, so that the client waits for an answer rather than for room

        assert_unavailable(lambda: call(patient(fake_server(talk).url)))

    def test_garbage_before_anything_was_asked(self, fake_server) -> None:
        def talk(connection: socket.socket) -> None:
            connection.sendall(b"+OK\r\n" * 50)
            time.sleep(ROOM_SECONDS)

        message = assert_unavailable(lambda: patient(fake_server(talk).url).delete_many([b"a"]))
        assert "DEL of 1 answered" in message

    @pytest.mark.parametrize("piece", [b"$1000\r\n", b"+"])
    @every_call
    def test_a_trickle_is_cut_off_by_the_deadline(self, fake_server, call, piece: bytes) -> None:
        """Each byte comes well within a timeout per operation, for ever."""

        def talk(connection: socket.socket) -> None:
            connection.sendall(piece)
            while True:
                connection.sendall(b"x")
                time.sleep(DEADLINE_SECONDS / 20)

        assert_unavailable(lambda: call(patient(fake_server(talk).url)))

    def test_a_slow_reader_is_cut_off_by_the_deadline(self, fake_server) -> None:
        def talk(connection: socket.socket) -> None:
            while connection.recv(1000):
                time.sleep(DEADLINE_SECONDS / 20)

        store = patient(fake_server(talk).url)
        assert_unavailable(lambda: store.put_many([(b"a", bytes(64 << 20))]))

    def test_a_server_that_hangs_up_is_an_outage(self, fake_server) -> None:
        store = patient(fake_server(socket.socket.close).url)
        assert_unavailable(lambda: store.get_many([b"a"]))

    def test_an_answer_nobody_asked_for_costs_the_connection(self, fake_server) -> None:
        """The second answer must not become that of the next key."""

        def talk(connection: socket.socket) -> None:
            for name in commands(connection):
                once = b"$5\r\nvalue\r\n" if name == b"GET" else b"+OK\r\n"
                connection.sendall(once * 2 if name == b"GET" else once)

        server = fake_server(talk)
        store = patient(server.url)
        assert store.get_many([b"a"]) == [b"value"]
        connections = server.accepted
        assert store.get_many([b"b"]) == [b"value"]
        assert server.accepted == connections + 1

    def test_a_connection_in_step_is_kept(self, fake_server) -> None:
        def talk(connection: socket.socket) -> None:
            for name in commands(connection):
                connection.sendall(b"$5\r\nvalue\r\n" if name == b"GET" else b"+OK\r\n")

        server = fake_server(talk)
        store = patient(server.url)
        for _ in range(5):
            assert store.get_many([b"a"]) == [b"value"]
        assert server.accepted == 1

    def test_an_error_in_the_middle_of_a_pipeline_costs_the_connection(self, fake_server) -> None:
        asked = 0

        def talk(connection: socket.socket) -> None:
            nonlocal asked
            for name in commands(connection):
                if name == b"GET":
                    asked += 1
                    connection.sendall(b"-ERR no\r\n" if asked == 2 else b"$1\r\n%d\r\n" % (asked % 10))
                else:
                    connection.sendall(b"+OK\r\n")

        server = fake_server(talk)
        store = patient(server.url)
        assert "ResponseError: no" in assert_unavailable(lambda: store.get_many([b"a", b"b", b"c"]))
        assert until_available(lambda: store.get_many([b"d"])) == [b"%d" % asked]
        assert server.accepted == 2


class TestBreaker:
    def test_a_dead_redis_is_not_asked_again_at_once(self, fake_server) -> None:
        server = fake_server(socket.socket.close)
        store = RedisStore(server.url, deadline_seconds=DEADLINE_SECONDS, retry_after_seconds=30.0)
        assert_unavailable(lambda: store.get_many([b"a"]))
        connections = server.accepted
        assert connections > 0
        for call in CALLS.values():
            assert "not asked again for" in assert_unavailable(lambda call=call: call(store))
        assert server.accepted == connections

    def test_a_full_redis_is_still_asked(self, redis_server) -> None:
        store = RedisStore(redis_server.url, retry_after_seconds=30.0)
        store.put_many([(b"a", b"1")])
        with Redis.from_url(redis_server.url) as redis:
            redis.config_set("maxmemory", "1")
            for _ in range(3):
                with pytest.raises(StoreFull):
                    store.put_many([(b"b", b"2")])
        assert store.get_many([b"a"]) == [b"1"]


def test_a_name_lookup_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def never(*arguments: object) -> object:
        release.wait()
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        assert_unavailable(lambda: patient("redis://cache.example").get_many([b"a"]))
    finally:
        release.set()
