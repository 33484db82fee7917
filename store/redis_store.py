"""A store in Redis, or in a server that speaks its protocol."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from kvtrie.prefix_tree.errors import InputError, StoreFull, StoreUnavailable
from kvtrie.store.breaker import CircuitBreaker
from kvtrie.store.contract import check_keys
from kvtrie.store.deadline import Deadline
from kvtrie.store.per_process import PerProcess

if TYPE_CHECKING:
    from kvtrie.store.redis_connection import RedisConnection, ScanPage

T = TypeVar("T")


class RedisStore:
    """A store in Redis. A record's Redis key is `prefix` and the record's key in hex, so redis-cli can show it.

    Every call ends within `deadline_seconds`, which includes connecting, logging in and moving the bytes. So keep
    batches small enough: Redis takes roughly 0.3 GiB/s and sends 1 GiB/s. A call that fails closes its connection
    and opens the circuit breaker; until the breaker lets a call try again, calls raise at once. Connections are
    made as calls need them and kept for later calls. A forked process makes its own; its `close` does not touch its
    parent's.

    Args:
        url: see `redis_url.REDIS_FORMS`; `unix://` is taken for `redis+unix://`.
        deadline_seconds: longest time of one call; a `scan` is one call per page of keys.
        prefix: of every Redis key; stores with different prefixes do not see each other.
        retry_after_seconds: how long calls are refused after a failure; doubles while it keeps failing.
        longest_retry_seconds: the longest such time.

    Raises:
        InputError: the URL is malformed, a time is not above 0, or redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_seconds: float = 2.0,
        prefix: str = "kvtrie:1:",
        retry_after_seconds: float = 1.0,
        longest_retry_seconds: float = 30.0,
    ) -> None:
        if not deadline_seconds > 0:
            raise InputError(f"deadline_seconds must be above 0, got {deadline_seconds}")
        try:
            from kvtrie.store.redis_connection import RedisAddress
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise InputError("a Redis store needs redis-py: pip install kvtrie[all]") from error
        self._address = RedisAddress(url)
        self._deadline_seconds = deadline_seconds
        self._prefix = prefix.encode()

        def open_pool(parents: _Pool | None) -> _Pool:
            breaker = CircuitBreaker(
                retry_after_seconds=retry_after_seconds, longest_seconds=longest_retry_seconds
            )
            return _Pool(breaker, is_closed=parents is not None and parents.is_closed)

        self._pools = PerProcess(open_pool)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`. A Redis key of another type than string is a miss."""
        names = self._names(keys)
        return self._call(lambda redis: redis.get(names)) if names else []

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Store`. Raises StoreFull for Redis's `OOM`: it is at `maxmemory` and has nothing that it may
        evict."""
        names = self._names([key for key, _ in items])
        named = [(name, value) for name, (_, value) in zip(names, items)]
        refusal = self._call(lambda redis: redis.set(named)) if named else None
        if refusal is not None:
            raise StoreFull(f"{self._address.shown}: {refusal}")

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """See `Store`."""
        names = self._names(keys)
        return self._call(lambda redis: redis.delete(names)) if names else 0

    def scan(self) -> Iterator[bytes]:
        """See `Store`. The deadline is per page: the number of pages depends on the size of the database."""
        pattern = re.sub(rb"([*?\[\]\\^-])", rb"\\\1", self._prefix) + b"*"
        cursor = 0

        def read_page(redis: RedisConnection) -> ScanPage:
            return redis.scan(cursor, pattern)

        while True:
            page = self._call(read_page)
            yield from filter(None, map(self._key, page.names))
            cursor = page.cursor
            if cursor == 0:
                return

    def close(self) -> None:
        """See `Store`."""
        self._pools.get().close()

    def _names(self, keys: Sequence[bytes]) -> list[bytes]:
        check_keys(keys)
        return [self._prefix + key.hex().encode() for key in keys]

    def _key(self, name: bytes) -> bytes | None:
        """The record key in the Redis key `name`; None if the name is not one of ours."""
        text = name[len(self._prefix) :].decode("ascii", "replace")
        if not re.fullmatch("(?:[0-9a-f]{2}){1,64}", text):
            return None
        return bytes.fromhex(text)

    def _call(self, work: Callable[[RedisConnection], T]) -> T:
        """Runs `work` on a connection of its own, under one deadline and behind the breaker."""
        pool = self._pools.get()
        if pool.is_closed:
            raise StoreUnavailable(f"{self._address.shown}: closed")
        ticket = pool.breaker.enter(self._deadline_seconds)
        if ticket is None:
            raise StoreUnavailable(
                f"{self._address.shown}: failed before, "
                f"not asked again for {pool.breaker.wait_seconds():.1f} s"
            )
        deadline = Deadline.after(self._deadline_seconds)
        connection = None
        try:
            connection = pool.take_idle(deadline) or self._address.connect(self._deadline_seconds, deadline)
            result = work(connection)
        except BaseException as error:
            # Replies may still arrive, and the next call must not read them as its own.
            if connection is not None:
                connection.disconnect()
            # Besides RedisError: on bytes that are not Redis's protocol the parsers raise ValueError, TypeError,
            # MemoryError or RecursionError. These are outages of the server too.
            if not isinstance(error, Exception):
                raise
            pool.breaker.failed(ticket)
            raise StoreUnavailable(f"{self._address.shown}: {type(error).__name__}: {error}") from error
        pool.breaker.succeeded(ticket)
        pool.keep_idle(connection)
        return result


class _Pool:
    """A process's idle connections, and its breaker."""

    def __init__(self, breaker: CircuitBreaker, *, is_closed: bool) -> None:
        self.breaker = breaker
        self.is_closed = is_closed
        self._lock = threading.Lock()
        self._idle: list[RedisConnection] = []

    def take_idle(self, deadline: Deadline) -> RedisConnection | None:
        """An idle connection that is still usable, with `deadline` set; None if there is none."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.usable(deadline):
                return connection
            connection.disconnect()

    def keep_idle(self, connection: RedisConnection) -> None:
        """Keeps a connection for the next call; disconnects it if the store was closed meanwhile."""
        with self._lock:
            if not self.is_closed:
                self._idle.append(connection)
                return
        connection.disconnect()

    def close(self) -> None:
        """Disconnects idle connections at once, and those in use when their call ends."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()
