"""In a sidecar: the place of a record in its path, to which the next record must chain."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import RecordError
from kvtrie.prefix_tree.keys import chunk_keys, path_digests
from kvtrie.prefix_tree.shape import ChunkShape
from kvtrie.store import Record, expect_record


@dataclass(frozen=True, slots=True)
class RecordLink:
    """One verified record's place, or the root's."""

    namespace: bytes
    """32 bytes."""
    key: bytes
    """Chunk key; for the root the whole namespace digest."""
    path_digest: bytes
    depth: int
    """Chunks from the root; 0 is the root."""
    shape: ChunkShape | None
    """None at the root: its children may have any."""

    @classmethod
    def root(cls, namespace: bytes) -> RecordLink:
        """The link of a namespace's root."""
        return cls(namespace, namespace, namespace, 0, None)

    def follow(self, record: Record, chunk_tokens: int) -> RecordLink:
        """The link of `record`, a chunk record that `decode_record` found intact, right after this one.

        Key and path digest are computed from the tokens here, not taken from the record.

        Raises:
            RecordError: it does not follow; `reason` is the first field that differs.
        """
        if record.shape is None:
            raise RecordError("depth", "a namespace record is no chunk")
        if record.shape.chunk_tokens != chunk_tokens:
            raise RecordError(
                "shape", f"chunks of {record.shape.chunk_tokens} tokens, this sidecar keeps {chunk_tokens}"
            )
        shape = self.shape if self.shape is not None else record.shape
        (key,) = chunk_keys(self.key, record.tokens, chunk_tokens)
        (path_digest,) = path_digests(self.path_digest, record.tokens, chunk_tokens)
        expect_record(
            record,
            namespace=self.namespace,
            key=key,
            parent_key=self.key,
            path_digest=path_digest,
            depth=self.depth + 1,
            tokens=record.tokens,
            shape=shape,
        )
        return RecordLink(self.namespace, key, path_digest, self.depth + 1, shape)
