"""From a URL to the store it names."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store.contract import Store
from kvtrie.store.memory import MemoryStore
from kvtrie.store.redis_store import RedisStore
from kvtrie.store.redis_url import REDIS_FORMS, shown_url

STORE_FORMS = ("memory://[?capacity_bytes=N]", *REDIS_FORMS)


def open_store(url: str, *, deadline_seconds: float = 2.0) -> Store:
    """The store that `url` names (`STORE_FORMS`). Opening does not connect: a store that is down opens.

    Raises:
        InputError: malformed, a form no store has, or a sidecar's address, which only `kvtrie.api` opens.
    """
    scheme = url.partition("://")[0].lower()
    if scheme == "memory":
        return _open_memory(url)
    if scheme in ("redis", "rediss", "redis+unix"):
        return RedisStore(url, deadline_seconds=deadline_seconds)
    if scheme in ("http", "https", "unix"):
        raise InputError(
            f"{shown_url(url)} is the address of a sidecar, which is no store: pass it as the sidecar, "
            "or write redis+unix:// for a Redis behind a Unix socket"
        )
    raise InputError(f"store URL {shown_url(url)} is not of a known form; accepted: {', '.join(STORE_FORMS)}")


def _open_memory(url: str) -> MemoryStore:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    capacity = options.pop("capacity_bytes", None)
    if options or parts.netloc or parts.path or (capacity is not None and not capacity.isdecimal()):
        raise InputError(f"store URL {shown_url(url)} is malformed; accepted: {STORE_FORMS[0]}")
    return MemoryStore(None if capacity is None else int(capacity))
