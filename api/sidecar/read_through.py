"""Reads from the store behind a sidecar: records that the host tier lacks are read, verified and kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kvtrie.api.sidecar.scoped_store import ScopedStore
from kvtrie.api.tiers.host_tier import HostTier
from kvtrie.api.tiers.record_link import RecordLink
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.prefix_tree.errors import RecordError, StoreError, StoreFull
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.store import Record, decode_record

_LOG = logging.getLogger(__name__)

FIRST_KEYS = 4
"""Keys asked for at first: a miss costs little, and the first record shows how large records are."""
BATCH_BYTES = 32 << 20
"""Size of later batches, about."""
MOST_KEYS = 256


class ReadThrough:
    """Reads of one sidecar's store, on behalf of its host tier.

    Args:
        seconds: after this long no further batch is asked for. With the store's own deadline for the last
            one, a read takes no longer than the two together.
        counters: counts `store_chunks`, `store_outages`, `store_rejected.<reason>`.
    """

    def __init__(
        self,
        held: HostTier,
        store: ScopedStore,
        store_key: bytes | None,
        counters: ScopeCounters,
        *,
        seconds: float,
    ) -> None:
        self._held = held
        self._store = store
        self._store_key = store_key
        self._counters = counters
        self._seconds = seconds

    def read(
        self, scope: str, namespace: bytes, keys: Sequence[bytes], after: RecordLink | None, max_bytes: int
    ) -> list[bytes]:
        """Records of the longest prefix of `keys` that the store has and that chain to `after`.

        If nothing above them is held (`after` is None), records above are read up to one that is held, or to the
        root. Each record is verified, then kept in the host tier if there is room. An outage ends the prefix.
        """
        found: list[bytes] = []
        try:
            self._read_into(found, scope, namespace, keys, after, max_bytes)
        except StoreError as error:
            self._counters.add(scope, "store_outages")
            _LOG.warning("store not asked further: %s", error)
        except RecordError as error:
            self._counters.add(scope, f"store_rejected.{error.reason}")
            _LOG.warning("record of the store not used: %s", error)
        if found:
            self._counters.add(scope, "store_chunks", len(found))
        return found

    def _read_into(
        self,
        found: list[bytes],
        scope: str,
        namespace: bytes,
        keys: Sequence[bytes],
        link: RecordLink | None,
        max_bytes: int,
    ) -> None:
        end = time.monotonic() + self._seconds
        batch, largest = FIRST_KEYS, 1
        while len(found) < len(keys) and time.monotonic() < end:
            asked = keys[len(found) : len(found) + batch]
            for key, data in zip(asked, self._store.fetch(scope, namespace, asked)):
                if data is None:
                    return
                record = decode_record(data, self._store_key)
                if link is None:
                    link = self._climb(scope, namespace, record, end)
                if link is None:
                    return
                link = link.follow(record, self._held.tree.chunk_tokens)
                if link.key != key:
                    raise RecordError("key", f"record is {link.key.hex()}, asked for {key.hex()}")
                max_bytes -= len(data)
                if max_bytes < 0:
                    return
                self._keep(scope, record, data)
                found.append(data)
                largest = max(largest, len(data))
            batch = max(1, min(MOST_KEYS, BATCH_BYTES // largest))

    def _climb(self, scope: str, namespace: bytes, record: Record, end: float) -> RecordLink | None:
        """The link above `record`, with all that is above it read from the store and kept; None for a gap."""
        above: list[tuple[Record, bytes]] = []
        link = None
        depth, key = record.depth, record.parent_key
        while link is None:
            if depth <= 1:
                self._read_name(scope, namespace)
                link = RecordLink.root(namespace)
            elif (link := self._held.link(scope, namespace, key)) is None:
                (data,) = self._store.fetch(scope, namespace, [key])
                if data is None or time.monotonic() >= end:
                    return None
                parent = decode_record(data, self._store_key)
                if parent.depth != depth - 1:
                    raise RecordError("depth", f"a parent at depth {parent.depth}, expected {depth - 1}")
                above.append((parent, data))
                depth, key = parent.depth, parent.parent_key
        for parent, data in reversed(above):
            link = link.follow(parent, self._held.tree.chunk_tokens)
            self._keep(scope, parent, data)
        return link

    def _read_name(self, scope: str, namespace: bytes) -> None:
        """Keeps the namespace's record if the store has it and the host tier does not."""
        if self._held.is_named(scope, namespace):
            return
        (data,) = self._store.fetch(scope, namespace, [namespace[:KEY_BYTES]])
        if data is not None:
            record = decode_record(data, self._store_key)
            if record.depth == 0 and record.namespace == namespace:
                self._keep(scope, record, data)

    def _keep(self, scope: str, record: Record, data: bytes) -> None:
        """Stores a verified record in the host tier if there is room; it is served in any case."""
        try:
            self._held.admit(scope, record, data)
        except (RecordError, StoreFull) as error:
            _LOG.debug("record of the store served but not kept: %s", error)
