"""The shape of one chunk's keys and values, as plain integers shared by pool, records and stores."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

FIDELITIES = {
    "raw": "exact",
    "int8": "int8, scale absmax/127 per token and KV head",
    "fp8": "fp8 e4m3fn, scale absmax/448 per token and KV head",
}
"""KV formats, and what each makes of a namespace's `fidelity`: exact and lossy KV are never shared."""

KV_FORMATS = tuple(FIDELITIES)

SCALE_BYTES = 4
"""One fp32 scale per token, KV head and layer, for the key and for the value; quantised formats only."""


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """`chunk_tokens` tokens in every layer: keys `[layers, kv_heads, chunk_tokens, key_dim]`, values alike.

    A quantised format stores one byte per element, and after each layer's elements their fp32 scales
    `[kv_heads, chunk_tokens]`; the value of an element is the element times its scale.

    Raises:
        InputError: a size below one, or a dtype or format kvtrie does not store.
    """

    layers: int
    kv_heads: int
    chunk_tokens: int
    key_dim: int
    value_dim: int
    dtype: str
    """Dtype that the model computes with: `float32`, `bfloat16` or `float16`. Raw elements are of this type."""
    kv_format: str = "raw"
    """How elements are stored: `raw`, `int8` or `fp8` (float8_e4m3fn)."""

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "chunk_tokens", "key_dim", "value_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(f"KV dtype {self.dtype!r} is not one of {sorted(DTYPE_BYTES)}")
        if self.kv_format not in KV_FORMATS:
            raise InputError(f"kv_format {self.kv_format!r} is not one of {list(KV_FORMATS)}")

    @property
    def is_quantised(self) -> bool:
        """Whether elements are stored as one byte each, beside scales."""
        return self.kv_format != "raw"

    @property
    def fidelity(self) -> str:
        """`Namespace.fidelity` of such KV."""
        return FIDELITIES[self.kv_format]

    @property
    def key_bytes(self) -> int:
        """Bytes of one layer's keys in one chunk, scales included."""
        return self.kv_heads * self.chunk_tokens * self._vector_bytes(self.key_dim)

    @property
    def value_bytes(self) -> int:
        """Bytes of one layer's values in one chunk, scales included."""
        return self.kv_heads * self.chunk_tokens * self._vector_bytes(self.value_dim)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk over all layers."""
        return self.layers * (self.key_bytes + self.value_bytes)

    def _vector_bytes(self, dim: int) -> int:
        """Bytes of one token's key or value in one KV head."""
        return dim + SCALE_BYTES if self.is_quantised else dim * DTYPE_BYTES[self.dtype]
