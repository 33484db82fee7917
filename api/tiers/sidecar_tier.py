"""A sidecar as an engine's lower tier."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import cast

import httpx

from kvtrie.api.http.record_frames import FrameReader, Limits, frame
from kvtrie.api.tiers.sidecar_connection import SidecarConnection, SidecarRequest, probe, read_limited
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.errors import AccessDenied, InputError, StoreError, StoreUnavailable
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.store import Store, WriteBehind
from kvtrie.store.per_process import PerProcess
from kvtrie.store.record import DIGEST_BYTES

SHARED = "shared:"
"""Prefix of the names of shared scopes in a namespace."""
_LONGEST_OUTCOME = 1 << 16
_MOST_NAMESPACES = 4096
_SCOPE_AT = DIGEST_BYTES + KEY_BYTES
"""Offset of the scope's number in a queue key."""
_CLOSE_SECONDS = 2.0


class SidecarTier:
    """A `LowerTier` whose records are in a sidecar.

    Records of a namespace whose scope is `shared:NAME` are stored in that shared scope if NAME is in
    `shared_scopes`; all other records are stored in the scope of the tenant whose key this is.

    A forked process connects anew and starts new counts; its `close` does not touch its parent's.

    Args:
        url: `http://host:port`, `https://host:port` (a proxy's) or `unix:///path`.
        api_key: a tenant's key; default KVTRIE_API_KEY. A sidecar without tenants needs none.
        shared_scopes: names of shared scopes to use; each must be among the tenant's `reads`.
        deadline_seconds: longest time of each call, connecting included.
        queue_bytes: most bytes waiting to be written.

    Raises:
        InputError: the URL or a number is malformed.
        AccessDenied: the sidecar does not know the key, or does not let it read a shared scope. An
            unreachable sidecar is not an error here: it may start later.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        shared_scopes: Collection[str] = (),
        deadline_seconds: float = 2.0,
        queue_bytes: int = 256 << 20,
    ) -> None:
        self._limits = Limits()
        self._shared = frozenset(shared_scopes)
        self._queue_bytes = queue_bytes
        self._counts: PerProcess[_Counts] = PerProcess(lambda _: _Counts())
        key = api_key if api_key is not None else os.environ.get("KVTRIE_API_KEY") or None
        self._connection = SidecarConnection(url, key, deadline_seconds)
        self._writer = _Writer(self._connection, self._count, self._shared)
        try:
            self._probe()
            # WriteBehind calls only `put_many` of its store.
            self._behind = WriteBehind(cast(Store, self._writer), max_bytes=queue_bytes)
        except InputError:
            self._connection.close()
            raise

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        """See `LowerTier.load`."""
        if not keys:
            return []
        asked = keys[: self._limits.max_keys]

        async def read(response: httpx.Response) -> list[bytes]:
            reader = FrameReader(self._limits.max_record_bytes)
            records: list[bytes] = []
            size = 0
            async for piece in response.aiter_raw():
                size += len(piece)
                records += reader.feed(piece)
                if len(records) > len(asked) or size > 2 * self._limits.max_reply_bytes:
                    raise InputError("the sidecar sent more records than were asked for")
            reader.finish()
            return records

        self._count("loads")
        body = namespace.digest + b"".join(asked)
        try:
            records = self._connection.ask(
                SidecarRequest("POST", "/v1/records/get", body, self._scope(namespace)), read
            )
        except StoreError:
            self._count("load_outages")
            raise
        # Access was granted at construction. If it is refused now, the request can still run without the tier.
        except AccessDenied as error:
            self._count("load_outages")
            raise StoreUnavailable(str(error)) from error
        self._count("loaded_records", len(records))
        self._count("loaded_bytes", sum(map(len, records)))
        return records

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        """See `LowerTier.offer`. Makes no record if the queue has no room for one as large as the last."""
        scope = self._scope(namespace)
        if self._connection.is_down:
            self._count("dropped_down")
            return False
        if scope in self._writer.denied:
            self._count("dropped_denied")
            return False
        known = self._writer.known(namespace.digest)
        if self._behind.stats().queued_bytes + known.last_bytes > self._queue_bytes:
            self._count("dropped_full")
            return False
        record = make()
        if key == namespace.digest[:KEY_BYTES]:
            known.name = record
        else:
            known.last_bytes = len(record)
        return self._behind.offer(self._writer.queue_key(namespace.digest, key, scope), record)

    def flush(self, timeout_seconds: float) -> bool:
        """See `LowerTier.flush`."""
        return self._behind.flush(timeout_seconds)

    def stats(self) -> Mapping[str, int | float]:
        """See `LowerTier.stats`: loads, the outcomes of offers, and the sidecar's `rejected.<reason>`."""
        written = asdict(self._behind.stats())
        for name, count in self._counts.get().all().items():
            written[name] = written.get(name, 0) + count
        return written

    def close(self) -> None:
        """See `LowerTier.close`. May be called twice."""
        self._behind.close(_CLOSE_SECONDS)
        self._connection.close()

    def _probe(self) -> None:
        async def read(response: httpx.Response) -> bool:
            return isinstance(json.loads(await read_limited(response, _LONGEST_OUTCOME)), dict)

        try:
            for scope in (None, *sorted(self._shared)):
                self._connection.ask(probe(scope), read)
        except StoreError:
            self._count("probe_failures")

    def _scope(self, namespace: Namespace) -> str | None:
        name = namespace.scope.removeprefix(SHARED)
        return name if name != namespace.scope and name in self._shared else None

    def _count(self, name: str, amount: int = 1) -> None:
        self._counts.get().add(name, amount)


class _Counts:
    """Named totals of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()

    def add(self, name: str, amount: int) -> None:
        """Adds to one total."""
        with self._lock:
            self._totals[name] += amount

    def all(self) -> dict[str, int]:
        """Every total."""
        with self._lock:
            return dict(self._totals)


@dataclass(slots=True)
class _Known:
    """Memory of the writer about one namespace."""

    name: bytes | None = None
    """Its namespace record, to send again to a sidecar that has lost it."""
    last_bytes: int = 0
    """Length of its last chunk record, and so of its next one."""


class _Writer:
    """The store of the write-behind queue: writes are puts over HTTP.

    Its keys are namespace digest + chunk key + number of the scope that the record is for.
    """

    def __init__(
        self, connection: SidecarConnection, count: Callable[[str, int], None], shared: Collection[str]
    ) -> None:
        self._connection = connection
        self._count = count
        self._scopes: list[str | None] = [None, *sorted(shared)]
        self._numbers = {scope: number.to_bytes(4, "little") for number, scope in enumerate(self._scopes)}
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self.denied: set[str | None] = set()
        """Shared scopes that this tenant reads and may not write."""

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Store.put_many`."""
        for number, group in groupby(items, key=lambda item: item[0][_SCOPE_AT:]):
            scope = self._scopes[int.from_bytes(number, "little")]
            unnamed = self._put(scope, [record for _, record in group])
            known = [self._known.get(digest) for digest in unnamed]
            names = [found.name for found in known if found is not None and found.name is not None]
            if names:
                self._put(scope, names)

    def queue_key(self, namespace: bytes, key: bytes, scope: str | None) -> bytes:
        """The queue's key of a record."""
        return namespace + key + self._numbers[scope]

    def known(self, namespace: bytes) -> _Known:
        """Entry of a namespace. The `_MOST_NAMESPACES` namespaces that were offered to last have one."""
        # Removed and inserted again at the end: no step fails if two threads offer at once.
        known = self._known[namespace] = self._known.pop(namespace, _Known())
        if len(self._known) > _MOST_NAMESPACES:
            self._known.popitem(last=False)
        return known

    def _put(self, scope: str | None, records: list[bytes]) -> list[bytes]:
        """Puts `records`. Returns digests of namespaces whose own record the sidecar does not hold."""

        async def read(response: httpx.Response) -> tuple[dict[str, int], list[bytes]]:
            outcome = json.loads(await read_limited(response, _LONGEST_OUTCOME))
            rejected = {str(reason): int(number) for reason, number in outcome["rejected"].items()}
            return rejected, [bytes.fromhex(digest) for digest in outcome["unnamed"]]

        try:
            rejected, unnamed = self._connection.ask(
                SidecarRequest("POST", "/v1/records/put", frame(records), scope), read
            )
        except AccessDenied as error:
            if scope is None:
                raise StoreUnavailable(str(error)) from error
            self.denied.add(scope)
            self._count("dropped_denied", len(records))
            return []
        for reason, number in rejected.items():
            self._count(f"rejected.{reason}", number)
        return unnamed
