"""One GET from a sidecar, over TCP or a Unix socket, with the standard library alone."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass

from kvtrie.api.http.address import Address, parse_address
from kvtrie.prefix_tree.errors import InputError, StoreUnavailable
from kvtrie.store.deadline import Deadline, run_within

LONGEST_REPLY = 1 << 30


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    body: bytes


def http_get(url: str, path: str, *, api_key: str | None, deadline_seconds: float) -> Reply:
    """`GET path` from the server at `url`. Redirects are not followed: the key is for this server only.

    Raises:
        InputError: the URL or the key is malformed.
        StoreUnavailable: no HTTP reply from there within the deadline, or one that is too long.
    """
    headers = {"Accept": "application/json", "User-Agent": "kvtrie"}
    if api_key is not None:
        if not api_key.isascii() or not api_key.isprintable():
            raise InputError("the API key has characters that no HTTP header can carry")
        headers["Authorization"] = f"Bearer {api_key}"
    connection = _connection(parse_address(url), deadline_seconds)

    def exchange() -> Reply:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return Reply(response.status, response.read(LONGEST_REPLY + 1))

    try:
        # A socket's own timeout holds for each read: a server that trickles would hold us for ever.
        reply = run_within(Deadline.after(deadline_seconds), exchange, lambda _: None)
        if len(reply.body) > LONGEST_REPLY:
            raise http.client.HTTPException("reply too long")
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = ascii(" ".join(said.split())[:200])[1:-1]
        raise StoreUnavailable(
            f"no sidecar answers at {url}: {reason}; start one with: kvtrie sidecar"
        ) from None
    finally:
        connection.close()
    return reply


def _connection(address: Address, timeout_seconds: float) -> http.client.HTTPConnection:
    if address.scheme == "unix":
        return _UnixConnection(address.socket_path, timeout_seconds)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    return kind(address.host, address.port, timeout=timeout_seconds)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
