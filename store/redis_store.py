"""Records in Redis, or in anything that speaks its protocol."""

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
    """Each record under `prefix` and its key in hex, so that redis-cli can name it.

    Every call ends within `deadline_seconds`, connecting and logging in included; the moving of large
    batches counts too, so ask for what fits (Redis moves roughly 0.3 GiB/s in and 1 GiB/s out). A call
    that fails closes its connection and opens the circuit breaker: until it lets one try again, calls
    raise at once. Connections are made as callers need them and kept for the next. A process that was
    forked makes its own; its `close` does not touch its parent's.

    Args:
        url: see `redis_url.REDIS_FORMS`; `unix://` is taken for `redis+unix://`.
        deadline_seconds: most that one call may take; a `scan` is one call per page of keys.
        prefix: of every Redis key; stores with different prefixes do not see each other.
        retry_after_seconds: how long calls are refused after a failure; doubles while it keeps failing.
        longest_retry_seconds: where the doubling ends.

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
        """See `Store`. StoreFull is Redis's `OOM`: at `maxmemory` with nothing it may evict."""
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
        """See `Store`. The deadline holds for each page: how many there are is the database's size."""
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
        """The key that `name` was made from; None for a name somebody else made under our prefix."""
        text = name[len(self._prefix) :].decode("ascii", "replace")
        if not re.fullmatch("(?:[0-9a-f]{2}){1,64}", text):
            return None
        return bytes.fromhex(text)

    def _call(self, work: Callable[[RedisConnection], T]) -> T:
        """`work` on a connection of its own, under one deadline and behind the breaker."""
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
            # Replies may be on the way: whatever the error, nobody may read them as answers to his own.
            if connection is not None:
                connection.disconnect()
            # Anything but RedisError is rare but real: on garbage the parsers raise ValueError,
            # TypeError, MemoryError or RecursionError, which are this server's fault all the same.
            if not isinstance(error, Exception):
                raise
            pool.breaker.failed(ticket)
            raise StoreUnavailable(f"{self._address.shown}: {type(error).__name__}: {error}") from error
        pool.breaker.succeeded(ticket)
        pool.keep_idle(connection)
        return result


class _Pool:
    """One process's connections that no call uses at the moment, and its breaker."""

    def __init__(self, breaker: CircuitBreaker, *, is_closed: bool) -> None:
        self.breaker = breaker
        self.is_closed = is_closed
        self._lock = threading.Lock()
        self._idle: list[RedisConnection] = []

    def take_idle(self, deadline: Deadline) -> RedisConnection | None:
        """A kept connection that is still in step, with `deadline` set; None where there is none."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.usable(deadline):
                return connection
            connection.disconnect()

    def keep_idle(self, connection: RedisConnection) -> None:
        """Keeps a connection for the next call; disconnects it where the store has been closed meanwhile."""
        with self._lock:
            if not self.is_closed:
                self._idle.append(connection)
                return
        connection.disconnect()

    def close(self) -> None:
        """Disconnects what is idle, and what is used now once it is not."""
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()
