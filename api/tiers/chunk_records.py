"""Chunks of the pool as records of a lower tier, and back; every record that is loaded is verified here.

A record that was loaded is used only after `expect_record` has compared all of it with what this process
computed itself: a record that differs in anything is a miss, counted by reason.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import numpy as np
import numpy.typing as npt

from kvtrie.api.tiers.lower_tier import LowerTier
from kvtrie.chunk_kernels import ChunkPool
from kvtrie.prefix_tree import Namespace, Root
from kvtrie.prefix_tree.errors import InputError, RecordError, StoreError
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.store import (
    RawCodec,
    Record,
    decode_record,
    encode_namespace_record,
    encode_record,
    expect_record,
)
from kvtrie.store.record import STORE_KEY_BYTES

_LOG = logging.getLogger(__name__)

_EXPONENTS = {"float32": ("<u4", 0x7F80_0000), "bfloat16": ("<u2", 0x7F80), "float16": ("<u2", 0x7C00)}
"""Element type as an unsigned word, and its exponent bits: all set in NaN and infinity, and only there."""

_FP8_NAN = 0x7F
"""float8_e4m3fn without its sign bit: the one pattern that is no number. It has no infinity."""


class ChunkRecords:
    """Offers published chunks to `tier` and loads missing ones from it.

    Args:
        pool: holds chunks on the device.
        tier: holds records.
        store_key: seals records with a keyed MAC; None for a plain checksum.
        counters: counts `loaded_chunks`, `lower_outages`, `records_rejected.<reason>`.

    Raises:
        InputError: the store key is not of 16 to 64 bytes.
    """

    def __init__(
        self, pool: ChunkPool, tier: LowerTier, store_key: bytes | None, counters: Counter[str]
    ) -> None:
        if store_key is not None and len(store_key) not in STORE_KEY_BYTES:
            raise InputError(f"KVTRIE_STORE_KEY must be 16 to 64 bytes, got {len(store_key)}")
        self._pool = pool
        self.tier = tier
        self._codec = RawCodec(pool.shape)
        self._store_key = store_key
        self._counters = counters
        self._announced: set[bytes] = set()

    def offer(
        self,
        root: Root,
        key: bytes,
        parent_key: bytes,
        path_digest: bytes,
        depth: int,
        chunk: bytes,
        slot: int,
    ) -> None:
        """Offers one whole chunk, whose KV is in `slot`; offers its namespace's record first."""

        def make() -> bytes:
            keys, values = self._pool.read_chunk(slot)
            record = Record(
                namespace=root.key,
                key=key,
                parent_key=parent_key[:KEY_BYTES],
                path_digest=path_digest,
                depth=depth,
                codec=self._codec.id,
                shape=self._pool.shape,
                tokens=chunk,
                payload=self._codec.encode(keys, values),
                created_at_seconds=int(time.time()),
            )
            return encode_record(record, self._store_key)

        try:
            self._announce(root.namespace)
            self.tier.offer(root.namespace, key, make)
        # Whatever a tier does wrong, the request that computed the chunk must not pay for it.
        except Exception:
            self._counters["lower_outages"] += 1
            _LOG.exception("chunk %s not offered to the lower tier", key.hex())

    def load(
        self, root: Root, parent_key: bytes, depth: int, chain: list[tuple[bytes, bytes, bytes]]
    ) -> list[Record]:
        """The intact records of the longest held prefix of `chain`, whose first chunk is at `depth`.

        `chain` has (key, path digest, tokens) of each chunk. An outage or a bad record ends the prefix.
        """
        try:
            # A list of it here: what a tier yields may raise, too.
            found = list(self.tier.load(root.namespace, [key for key, _, _ in chain]))
        except StoreError as error:
            self._counters["lower_outages"] += 1
            _LOG.warning("lower tier not available, recomputing: %s", error)
            return []
        # A defect of the tier, loud in the log: still no reason for a request to fail.
        except Exception:
            self._counters["lower_outages"] += 1
            _LOG.exception("lower tier failed, recomputing")
            return []
        records: list[Record] = []
        for data, (key, path_digest, chunk) in zip(found, chain):
            try:
                record = decode_record(data, self._store_key)
                expect_record(
                    record,
                    namespace=root.key,
                    key=key,
                    parent_key=parent_key,
                    path_digest=path_digest,
                    depth=depth + len(records),
                    tokens=chunk,
                    shape=self._pool.shape,
                )
                self._expect_finite(record)
            except RecordError as error:
                self._counters[f"records_rejected.{error.reason}"] += 1
                _LOG.warning("record %s not used: %s", key.hex(), error)
                break
            # A defect of the tier, too: it gave what is not bytes.
            except Exception:
                self._counters["lower_outages"] += 1
                _LOG.exception(
                    "lower tier gave a %s for record %s, recomputing", type(data).__name__, key.hex()
                )
                break
            records.append(record)
            parent_key = key
        return records

    def restore(self, record: Record, slot: int) -> None:
        """Puts a loaded chunk into a slot."""
        keys, values = self._codec.decode(record.payload)
        self._pool.write_chunk(slot, keys, values)
        self._counters["loaded_chunks"] += 1

    def _expect_finite(self, record: Record) -> None:
        """Checks for NaN and infinity: no such record is offered, and every request that reads one would fail."""
        shape = self._pool.shape
        if not shape.is_quantised:
            if not _is_finite(np.frombuffer(record.payload, np.uint8), shape.dtype):
                raise RecordError("values", "the payload holds NaN or infinity")
            return
        vectors = shape.kv_heads * shape.chunk_tokens
        decoded = self._codec.decode(record.payload)
        for stored, dim in ((decoded.keys, shape.key_dim), (decoded.values, shape.value_dim)):
            elements, scales = np.split(stored, [vectors * dim], axis=1)
            if not _is_finite(np.ascontiguousarray(scales), "float32"):
                raise RecordError("values", "a scale is NaN or infinity")
            if shape.kv_format == "fp8" and bool(((elements & 0x7F) == _FP8_NAN).any()):
                raise RecordError("values", "the payload holds NaN")

    def _announce(self, namespace: Namespace) -> None:
        if namespace.digest in self._announced:
            return
        taken = self.tier.offer(
            namespace,
            namespace.digest[:KEY_BYTES],
            lambda: encode_namespace_record(
                namespace, created_at_seconds=int(time.time()), store_key=self._store_key
            ),
        )
        if taken:
            self._announced.add(namespace.digest)


def _is_finite(elements: npt.NDArray[np.uint8], dtype: str) -> bool:
    """Whether contiguous bytes of this element type hold neither NaN nor infinity."""
    word, exponent = _EXPONENTS[dtype]
    return int((elements.view(word) & exponent).max()) != exponent
