"""The namespace record: the fields behind a namespace's digest, so that a store can be read on its own.

It is stored under the first 16 bytes of the namespace digest, at depth 0, and its payload is the namespace's
canonical JSON without the salt. Without it the chunks of a namespace are usable but nameless.
"""

from __future__ import annotations

import json

from kvtrie.prefix_tree.errors import InputError, RecordError
from kvtrie.prefix_tree.keys import KEY_BYTES
from kvtrie.prefix_tree.namespace import Namespace, namespace_fields
from kvtrie.store.codec import NO_CODEC
from kvtrie.store.record import Record, encode_record


def encode_namespace_record(
    namespace: Namespace, *, created_at_seconds: int, store_key: bytes | None = None
) -> bytes:
    """The record with the fields of `namespace`; store it under the digest's first 16 bytes.

    Raises:
        RecordError: the creation time does not fit 64 bits.
        InputError: the store key is not of 16 to 64 bytes.
    """
    short = namespace.digest[:KEY_BYTES]
    record = Record(
        namespace=namespace.digest,
        key=short,
        parent_key=short,
        path_digest=namespace.digest,
        depth=0,
        codec=NO_CODEC,
        shape=None,
        tokens=b"",
        payload=namespace.to_json().encode(),
        created_at_seconds=created_at_seconds,
    )
    return encode_record(record, store_key)


def decode_namespace(record: Record) -> dict[str, str | int]:
    """Fields of the namespace that `record` describes; a salt is shown only as a digest of it.

    Raises:
        RecordError: `depth` where it is a chunk record; `namespace` where the payload is not a
            namespace's JSON, or (checked where there is no salt) not that of the record's digest.
    """
    if record.depth != 0:
        raise RecordError("depth", f"record at depth {record.depth} is a chunk, not a namespace")
    try:
        document = json.loads(bytes(record.payload))
        if not isinstance(document, dict):
            raise InputError(f"namespace document is a {type(document).__name__}, not an object")
        shown = namespace_fields(document)
        # A salt is not shown, so only an unsalted namespace can be digested again.
        if not shown["salt"] and Namespace(**shown).digest != record.namespace:  # type: ignore[arg-type]
            raise InputError(f"its fields are not those of {record.namespace.hex()}")
    # RecursionError is how json answers a megabyte of `[`.
    except (ValueError, RecursionError) as error:
        raise RecordError("namespace", f"unusable namespace document: {error}") from error
    return shown
