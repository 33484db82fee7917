"""The shape of one chunk's keys and values, as plain integers shared by pool, records and stores."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """`chunk_tokens` tokens in every layer: keys `[layers, kv_heads, chunk_tokens, key_dim]`, values alike.

    Raises:
        InputError: a size below one, or a dtype kvtrie does not store.
    """

    layers: int
    kv_heads: int
    chunk_tokens: int
    key_dim: int
    value_dim: int
    dtype: str
    """`float32`, `bfloat16` or `float16`."""

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "chunk_tokens", "key_dim", "value_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(f"KV dtype {self.dtype!r} is not one of {sorted(DTYPE_BYTES)}")

    @property
    def key_bytes(self) -> int:
        """Bytes of one layer's keys in one chunk."""
        return self.kv_heads * self.chunk_tokens * self.key_dim * DTYPE_BYTES[self.dtype]

    @property
    def value_bytes(self) -> int:
        """Bytes of one layer's values in one chunk."""
        return self.kv_heads * self.chunk_tokens * self.value_dim * DTYPE_BYTES[self.dtype]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk over all layers."""
        return self.layers * (self.key_bytes + self.value_bytes)
