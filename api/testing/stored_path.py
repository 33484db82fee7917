"""A path of chunks with the records that an engine would offer for it."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrie.prefix_tree import ChunkShape, Namespace
from kvtrie.prefix_tree.keys import KEY_BYTES, TOKEN_BYTES, as_tokens, chunk_keys, path_digests
from kvtrie.store import RawCodec, Record, encode_record

SMALL_SHAPE = ChunkShape(layers=1, kv_heads=1, chunk_tokens=4, key_dim=2, value_dim=2, dtype="float32")
"""A chunk of four tokens, whose keys and values are 64 bytes."""


class StoredPath:
    """The whole chunks of `tokens`: their keys, and a valid record of each, in path order.

    Args:
        namespace: of the path; its `chunk_tokens` must be those of `shape`.
        tokens: token ids; what is left after the last whole chunk has no record.
        shape: of each chunk. The payload's bytes are made of the chunk's key.
        store_key: seals the records; None for plain checksums.
    """

    def __init__(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        shape: ChunkShape = SMALL_SHAPE,
        store_key: bytes | None = None,
    ) -> None:
        self.namespace = namespace
        self.tokens = as_tokens(tokens).astype("<i4").tobytes()
        """As int32le bytes."""
        self.keys = chunk_keys(namespace.digest, self.tokens, shape.chunk_tokens)
        """Chunk key of each whole chunk."""
        paths = path_digests(namespace.digest, self.tokens, shape.chunk_tokens)
        token_bytes_per_chunk = shape.chunk_tokens * TOKEN_BYTES
        self.records = [
            encode_record(
                Record(
                    namespace=namespace.digest,
                    key=key,
                    parent_key=(self.keys[place - 1] if place else namespace.digest)[:KEY_BYTES],
                    path_digest=paths[place],
                    depth=place + 1,
                    codec=RawCodec.id,
                    shape=shape,
                    tokens=self.tokens[place * token_bytes_per_chunk : (place + 1) * token_bytes_per_chunk],
                    payload=key * (shape.chunk_bytes // KEY_BYTES),
                    created_at_seconds=1,
                ),
                store_key,
            )
            for place, key in enumerate(self.keys)
        ]
        """Encoded record of each whole chunk."""
