"""Addresses of servers: `http://host:port` or `unix:///path`."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from kvtrie.prefix_tree.errors import InputError

FORMS = "http://host:port, unix:///path/to.sock or unix:///path/to.sock?mode=660"
PRIVATE_MODE = 0o600
"""Permissions of a socket file whose address has no `mode=`: its owner only."""
LONGEST_SOCKET_PATH = 107
"""Bytes that a Unix socket's path may have on Linux."""


@dataclass(frozen=True, slots=True)
class Address:
    """One end of HTTP: TCP where `socket_path` is empty, a Unix socket where not."""

    text: str
    """As the user wrote it."""
    scheme: str
    """`http`, `https` (clients only, through a proxy that ends TLS) or `unix`."""
    host: str = ""
    port: int = 0
    """0 lets the system choose, for a listener."""
    socket_path: str = ""
    socket_mode: int = PRIVATE_MODE

    @property
    def base_url(self) -> str:
        """Base URL for an HTTP client; over a Unix socket its host is only a name."""
        if self.scheme == "unix":
            return "http://localhost"
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def is_loopback(self) -> bool:
        """Whether it can be reached from this machine only: true of every address that its host resolves to.

        Raises:
            InputError: the host cannot be resolved.
        """
        if self.scheme == "unix":
            return True
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InputError(f"address {self.text}: host {self.host} cannot be resolved ({error})") from None
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def parse_address(text: str) -> Address:
    """Parses an address.

    Raises:
        InputError: it is of none of `FORMS`.
    """
    # 1. A URL at all.
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _malformed(text, "cannot be parsed") from None
    if parts.fragment:
        raise _malformed(text, "has a `#`")
    # 2. TCP: a host, a port, and nothing else.
    if parts.scheme in ("http", "https"):
        if not parts.hostname:
            raise _malformed(text, "names no host")
        if parts.path not in ("", "/") or parts.query or parts.username is not None:
            raise _malformed(text, "has more than a host and a port")
        if port is None:
            raise _malformed(text, "names no port")
        return Address(text, parts.scheme, host=parts.hostname, port=port)
    # 3. A Unix socket: an absolute path, and the mode of its file.
    if parts.scheme == "unix":
        if parts.netloc or len(parts.path) < 2:
            raise _malformed(text, "names no absolute path")
        if len(parts.path.encode()) > LONGEST_SOCKET_PATH:
            raise _malformed(text, f"has a path of more than {LONGEST_SOCKET_PATH} bytes")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        mode = options.pop("mode", f"{PRIVATE_MODE:o}")
        if options or not re.fullmatch("0?[0-7]{3}", mode):
            raise _malformed(text, "has an option other than mode= with three octal digits")
        return Address(text, "unix", socket_path=parts.path, socket_mode=int(mode, 8))
    raise _malformed(text, f"has scheme {parts.scheme!r}")


def _malformed(text: str, problem: str) -> InputError:
    return InputError(f"address {text!r} {problem}; accepted: {FORMS}")
