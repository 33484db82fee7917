"""The sidecar without HTTP: match, get, put, show. One object for all tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kvtrie.api.eviction import Eviction
from kvtrie.api.http.record_frames import Limits
from kvtrie.api.sidecar.host_snapshot import take_host_snapshot
from kvtrie.api.sidecar.metrics import render_metrics
from kvtrie.api.sidecar.read_through import ReadThrough
from kvtrie.api.sidecar.scoped_store import ScopedStore
from kvtrie.api.tiers.homes import NAMESPACE_BYTES
from kvtrie.api.tiers.host_tier import HostTier
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.api.traffic.traffic_watch import TrafficWatch
from kvtrie.api.traffic.what_if import as_counters
from kvtrie.prefix_tree import Snapshot
from kvtrie.prefix_tree.errors import InputError, RecordError, StoreFull
from kvtrie.store import Store, decode_record

_SMALLEST_RECEIVE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """Settings of a sidecar.

    Raises:
        InputError: `chunk_tokens` below one, less memory than one namespace takes, or `receive_bytes` below 4 MiB.
    """

    memory_bytes: int = 1 << 30
    """Capacity of the host tier: encoded records."""
    chunk_tokens: int = 64
    """Tokens of every chunk, as its engines have it."""
    store_read_seconds: float = 0.75
    """Most time a lookup spends on the store, and the store's own deadline: twice this is below the
    client's deadline, so that with a hung store the host tier's records are still served in time."""
    eviction: Eviction = field(default_factory=Eviction)
    """Which chunks are evicted when the host tier is full."""
    receive_bytes: int | None = None
    """Most bytes of bodies that are not whole yet, over all requests; None for an eighth of the memory, and at
    least 64 MiB. They count beside the host tier's memory."""
    store_key: bytes | None = field(default=None, repr=False)
    """Seals records with a keyed MAC: records put must carry it."""

    @property
    def receive_budget_bytes(self) -> int:
        """`receive_bytes`, or what it is by default."""
        if self.receive_bytes is not None:
            return self.receive_bytes
        return max(_SMALLEST_RECEIVE_BYTES, self.memory_bytes // 8)

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise InputError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")
        if self.memory_bytes <= NAMESPACE_BYTES:
            raise InputError(
                f"memory of {self.memory_bytes} bytes holds no chunk: a namespace alone takes {NAMESPACE_BYTES}"
            )
        if self.receive_bytes is not None and self.receive_bytes < 4 << 20:
            raise InputError(f"receive_bytes must be at least {4 << 20}, got {self.receive_bytes}")


@dataclass(slots=True)
class PutOutcome:
    """The outcome of one put."""

    stored: int = 0
    held: int = 0
    """Records that were held already."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason: a `RecordError.reason`, or `full`."""
    unnamed: set[bytes] = field(default_factory=set)
    """Namespaces of accepted chunks whose namespace record is not held: the client may send it."""


class Sidecar:
    """The host tier, the store behind it, and the counters. Thread-safe; calls may wait for the store.

    Args:
        store: is written behind the host tier, and closed with the sidecar; None for no store.

    Raises:
        InputError: the store key is not of 16 to 64 bytes, or KVTRIE_TRACE cannot be written.
    """

    def __init__(
        self, config: SidecarConfig | None = None, limits: Limits | None = None, store: Store | None = None
    ) -> None:
        self.config = config or SidecarConfig()
        self.limits = limits or Limits()
        self.counters = ScopeCounters()
        self.held = HostTier(
            self.config.memory_bytes,
            self.config.chunk_tokens,
            self.counters,
            eviction=self.config.eviction,
        )
        self.watch = TrafficWatch(self.config.chunk_tokens, "sidecar")
        """Request log and what-if curves of gets."""
        self._store = None if store is None else ScopedStore(store)
        self._below = None if self._store is None else ReadThrough(
            self.held,
            self._store,
            self.config.store_key,
            self.counters,
            seconds=self.config.store_read_seconds,
        )  # fmt: skip

    def match(self, scope: str, namespace: bytes, tokens: bytes) -> int:
        """Whole chunks of a prompt (int32le) that the host tier holds."""
        self.counters.add(scope, "matches")
        return self.held.match(scope, namespace, tokens)

    def get(self, scope: str, namespace: bytes, keys: Sequence[bytes]) -> list[bytes]:
        """Encoded records of the longest held prefix of `keys`, host tier first, then the store."""
        held = self.held.get(scope, namespace, keys)
        records: list[bytes] = []
        room = self.limits.max_reply_bytes
        for record in held:
            room -= len(record.data)
            if room < 0:
                break
            records.append(record.data)
        else:
            if self._below is not None and len(held) < len(keys):
                last = held[-1].link if held else None
                records += self._below.read(scope, namespace, keys[len(held) :], last, room)
        count = self.counters.add
        count(scope, "requests")
        count(scope, "prompt_tokens", len(keys) * self.config.chunk_tokens)
        count(scope, "cached_tokens", len(records) * self.config.chunk_tokens)
        count(scope, "sent_bytes", sum(map(len, records)))
        is_recorded = self.watch.recorder is not None and bool(keys)
        above = self.held.keys_above(scope, namespace, keys[0]) if is_recorded else []
        self.watch.asked(scope, above, keys)
        return records

    def put(self, scope: str, records: Sequence[bytes], outcome: PutOutcome) -> None:
        """Verifies encoded records, in path order, stores them and writes them behind; adds to `outcome`."""
        for data in records:
            try:
                record = decode_record(data, self.config.store_key)
                stored = self.held.admit(scope, record, data)
            except RecordError as error:
                self._reject(scope, error.reason, outcome)
                continue
            except StoreFull:
                self._reject(scope, "full", outcome)
                continue
            if stored:
                outcome.stored += 1
                self.counters.add(scope, "stored_records")
                self.counters.add(scope, "stored_bytes", len(data))
                if self._store is not None:
                    self._store.offer(scope, record.namespace, record.key, data)
            else:
                outcome.held += 1
                self.counters.add(scope, "held_records")
            if record.depth and not self.held.is_named(scope, record.namespace):
                outcome.unnamed.add(record.namespace)

    def _reject(self, scope: str, reason: str, outcome: PutOutcome) -> None:
        outcome.rejected[reason] += 1
        self.counters.add(scope, f"rejected.{reason}")

    def snapshot(self, scopes: Collection[str] | None) -> Snapshot:
        """The tree of `scopes`, or of all, with their counters."""
        counters = {**self.counters.summed(scopes), **as_counters(self.what_if(scopes))}
        return take_host_snapshot(self.held, scopes, counters)

    def what_if(self, scopes: Collection[str] | None) -> dict[str, dict[int, float]]:
        """Hit ratio of each of `scopes`, or of all, by percent of the chunks it has now."""
        return self.watch.what_if.hit_ratios(self.held.chunks_of(scopes))

    def metrics(self) -> str:
        """Everything that is counted, for Prometheus."""
        writing = None if self._store is None else self._store.stats()
        return render_metrics(self.held, self.counters, writing, self.what_if(None))

    def store_state(self) -> str:
        """`none`, `ok` or `unavailable`; asks the store, within its deadline."""
        if self._store is None:
            return "none"
        return "ok" if self._store.is_answering() else "unavailable"

    def is_usable(self) -> bool:
        """Whether the tree answers, and its books are right at this moment."""
        with self.held.lock:
            tier = self.held.tier
            return 0 <= tier.free_bytes <= tier.capacity_bytes

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Writes what waits for the store, within `timeout_seconds`, and closes it and the trace."""
        self.watch.close()
        if self._store is not None:
            self._store.close(timeout_seconds)
