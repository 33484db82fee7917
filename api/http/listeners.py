"""Sockets that a server listens on: bound before anything else, and removed at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvtrie.api.http.address import FORMS, Address
from kvtrie.prefix_tree.errors import InputError

_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound and listening socket."""

    socket: socket.socket
    shown: str
    """Its address, with the port that the system chose."""


def check_addresses(addresses: Sequence[Address], *, with_tenants: bool) -> None:
    """Checks that a server may listen there.

    Raises:
        InputError: no address, one that no listener can have, or, without tenants, one that others than
            this machine can reach.
    """
    if not addresses:
        raise InputError(f"nowhere to listen; pass --listen with {FORMS}")
    for address in addresses:
        if address.scheme == "https":
            raise InputError(
                f"address {address.text}: a sidecar speaks no TLS; put a proxy before it, or use http://"
            )
        if not with_tenants and not address.is_loopback():
            raise InputError(
                f"address {address.text} can be reached from other machines, and without --tenants anyone "
                "who reaches it reads every prompt: pass --tenants FILE, or listen on 127.0.0.1 or unix:///path"
            )


@contextmanager
def listening(addresses: Sequence[Address]) -> Iterator[list[Listener]]:
    """Binds `addresses`; closes them at the end, and removes the socket files that are still ours.

    Raises:
        InputError: an address is in use, may not be bound, or is a file that is no socket.
    """
    bound: list[Listener] = []
    files: list[tuple[str, tuple[int, int]]] = []
    try:
        for address in addresses:
            try:
                if address.scheme == "unix":
                    bound.append(_bind_unix(address))
                    files.append((address.socket_path, _identity(address.socket_path)))
                else:
                    bound.append(_bind_tcp(address))
            except OSError as error:
                raise InputError(f"cannot listen on {address.text}: {error.strerror or error}") from None
        yield bound
    finally:
        for listener in bound:
            listener.socket.close()
        for path, identity in files:
            _remove_if_ours(path, identity)


def _bind_tcp(address: Address) -> Listener:
    family, _, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    # asyncio sets TCP_NODELAY on a connection only where the listener's socket says that its protocol is TCP.
    # Without it the body of each reply waits some 40 ms for the client to acknowledge the headers.
    bound = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(name)
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    host = f"[{address.host}]" if ":" in address.host else address.host
    return Listener(bound, f"http://{host}:{bound.getsockname()[1]}")


def _bind_unix(address: Address) -> Listener:
    path = address.socket_path
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody may connect between bind and chmod. No thread of ours creates files meanwhile.
        before = os.umask(0o177)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, address.socket_mode)
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return Listener(bound, f"unix://{path}")


def _remove_stale(path: str) -> None:
    """Removes a socket file whose process has ended.

    Raises:
        OSError: somebody listens there, or it is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        # A full backlog or a hung listener is a listener all the same.
        except (TimeoutError, BlockingIOError):
            pass
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_if_ours(path: str, identity: tuple[int, int]) -> None:
    try:
        if _identity(path) == identity:
            os.unlink(path)
    except FileNotFoundError:
        pass
