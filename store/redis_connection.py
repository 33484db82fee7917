"""One connection to Redis whose every wait ends by the deadline of the call it serves.

redis-py's timeouts hold per socket operation: a server that trickles one byte a second keeps a reader
forever. Here the socket itself knows the deadline, so connecting, handshake, sending and parsing are
bounded together, and no second thread is needed while the connection lives.

This module imports redis and is itself imported only when a Redis is opened.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import InvalidResponse, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store.deadline import Deadline, run_within
from kvtrie.store.redis_url import REDIS_FORMS, redis_py_url, shown_url

SMALL_VALUE_BYTES = 1 << 16
"""Up to this size pipelined GETs are faster than single ones: 4 to 6 times at 1 KiB, 1.4 times at 64 KiB."""
WINDOW_COMMANDS = 64
"""Most commands on the way at once."""
WINDOW_BYTES = 1 << 18
"""Most bytes of values in one window of SETs (but at least one value)."""
SCAN_COUNT = 1000


class ScanPage(NamedTuple):
    """One answer to SCAN."""

    cursor: int
    """Where the next page begins; 0 is the end."""
    names: list[bytes]


class _Deadlined:
    """Mixed into redis-py's connections: `_connect` is where they leave it to subclasses to open a socket."""

    deadline: Deadline
    """Deadline of the call that has the connection now."""

    def _connect(self) -> DeadlineSocket:
        connect = super()._connect  # type: ignore[misc]
        return DeadlineSocket(run_within(self.deadline, connect, socket.socket.close), self)


class DeadlineSocket:
    """A connected socket whose waits all end by its connection's deadline.

    Timeouts set from outside shorten a wait, never lengthen it. What is not redefined is the socket's.
    """

    def __init__(self, sock: socket.socket, connection: _Deadlined) -> None:
        self._connection = connection
        self._sock = sock
        self._timeout_seconds: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        """Upper bound of each single wait; None leaves the deadline alone to bound it."""
        self._timeout_seconds = seconds

    def recv(self, size: int, flags: int = 0) -> bytes:
        """See `socket.recv`. Raises TimeoutError past the deadline."""
        self._arm()
        return self._sock.recv(size, flags)

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """See `socket.recv_into`. Raises TimeoutError past the deadline."""
        self._arm()
        return self._sock.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        """See `socket.sendall`, whose timeout starts anew with each piece where the socket is TLS."""
        rest = memoryview(data)
        while rest:
            self._arm()
            rest = rest[self._sock.send(rest) :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _arm(self) -> None:
        left = self._connection.deadline.remaining_seconds()
        self._sock.settimeout(left if self._timeout_seconds is None else min(left, self._timeout_seconds))


class _Tcp(_Deadlined, Connection):
    pass


class _Tls(_Deadlined, SSLConnection):
    pass


class _Unix(_Deadlined, UnixDomainSocketConnection):
    pass


_CLASSES: dict[type, type] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
_parse_url: Any = parse_url  # untyped in redis-py


class RedisAddress:
    """Where a Redis is and how to log in; makes connections and never shows a secret.

    Raises:
        InputError: the URL is malformed.
    """

    def __init__(self, url: str) -> None:
        self.shown = shown_url(url)
        try:
            settings: dict[str, Any] = _parse_url(redis_py_url(url))
            self._class: Any = _CLASSES[settings.pop("connection_class", Connection)]
            # redis-py before 6 does not compare the certificate with the host by default.
            if self._class is _Tls and "ssl_cert_reqs" not in settings:
                settings.setdefault("ssl_check_hostname", True)
            self._settings = settings
            self._make(1.0)
        except InputError:
            raise
        # What redis-py raises for an unknown or ill-typed ssl_ option; its text may quote the value.
        except (TypeError, ValueError, RedisError):
            raise InputError(
                f"Redis URL {self.shown} has an ssl_ option that redis-py does not take; "
                f"accepted: {', '.join(REDIS_FORMS)}"
            ) from None

    def connect(self, seconds: float, deadline: Deadline) -> RedisConnection:
        """A new connection, logged in. An attempt left behind by the deadline ends after `seconds`.

        Raises:
            OSError, RedisError: it could not be had by `deadline`.
        """
        connection = self._make(seconds)
        connection.deadline = deadline
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return RedisConnection(connection)

    def _make(self, seconds: float) -> Any:
        # RESP2, because RESP3 lets a server push what nobody asked for. No retries: they would not
        # know the deadline, and the circuit breaker decides when to try again.
        return self._class(
            **self._settings,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
        )


class RedisConnection:
    """The few commands a store needs. After any exception the connection must be dropped, not reused.

    Every method may raise OSError, RedisError or, on an answer that is no Redis's, nearly anything.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def usable(self, deadline: Deadline) -> bool:
        """Makes `deadline` that of the next commands; False where the peer has closed or spoken unasked."""
        self._connection.deadline = deadline
        try:
            return not self._connection.can_read(0)
        except (OSError, RedisError):
            return False

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Value of each name, None where there is none or it is not a string.

        Pipelined while values are small: there the round trip is the cost. One at a time while they are
        large: Redis queues every reply of a pipeline in memory, and single GETs of 128 KiB to 2 MiB were
        1.1 to 1.9 times as fast. Sizes are not known beforehand, and STRLEN costs the round trip it
        would save, so each answer decides how many are asked for next.
        """
        values: list[bytes | None] = []
        window = 1
        while len(values) < len(names):
            asked = names[len(values) : len(values) + window]
            self._send([(b"GET", name) for name in asked])
            answers = [self._value() for _ in asked]
            values += answers
            largest = max(len(answer or b"") for answer in answers)
            window = min(2 * window, WINDOW_COMMANDS) if largest <= SMALL_VALUE_BYTES else 1
        return values

    def set(self, items: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Stores `items`. Returns the error that Redis replied if it had no room for one of them, else None."""
        refusal = None
        start = 0
        while start < len(items):
            end, size = start + 1, len(items[start][1])
            while end < len(items) and end - start < WINDOW_COMMANDS:
                size += len(items[end][1])
                if size > WINDOW_BYTES:
                    break
                end += 1
            self._send([(b"SET", name, value) for name, value in items[start:end]])
            for _ in range(end - start):
                try:
                    answer = self._connection.read_response(disable_decoding=True)
                except OutOfMemoryError as error:
                    # An answer like any other: the rest must be read to stay in step.
                    refusal = str(error)
                else:
                    if answer != b"OK":
                        raise InvalidResponse(f"SET answered {type(answer).__name__}")
            if refusal is not None:
                return refusal
            start = end
        return None

    def delete(self, names: Sequence[bytes]) -> int:
        """Deletes `names`; how many there were."""
        self._send([(b"DEL", *names)])
        answer = self._connection.read_response(disable_decoding=True)
        if type(answer) is not int or not 0 <= answer <= len(names):
            raise InvalidResponse(f"DEL of {len(names)} answered {answer!r:.50}")
        return answer

    def scan(self, cursor: int, pattern: bytes) -> ScanPage:
        """One page of the names that match the glob `pattern`."""
        self._send([(b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", b"%d" % SCAN_COUNT)])
        match self._connection.read_response(disable_decoding=True):
            case [bytes(following), list(names)] if all(type(name) is bytes for name in names):
                return ScanPage(int(following), names)
            case answer:
                raise InvalidResponse(f"SCAN answered {type(answer).__name__}")

    def disconnect(self) -> None:
        """Closes the socket, at once and whatever is on the way."""
        self._connection.disconnect()

    def _send(self, commands: list[tuple[bytes, ...]]) -> None:
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def _value(self) -> bytes | None:
        try:
            answer = self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return None
            raise
        if answer is not None and type(answer) is not bytes:
            raise InvalidResponse(f"GET answered {type(answer).__name__}")
        return answer
