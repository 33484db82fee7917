"""Chunk keys and path digests: the two chains that name a chunk by everything before it.

A *chunk key* (16 bytes, xxh3_128) is fast and only ever a hint: a hit counts after its tokens were
compared. A *path digest* (32 bytes, sha256) is what records carry, so that bytes from outside this
process are bound to the whole prefix even if two chunk keys should collide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from kvtrie.prefix_tree.errors import InputError

KEY_BYTES = 16
TOKEN_BYTES = 4

TokenArray = npt.NDArray[np.int32]
Digest = Callable[[bytes], bytes]
"""Hashes `parent key || tokens` to a chunk key; tests pass a narrow one to force collisions."""


def as_tokens(tokens: Sequence[int] | npt.NDArray[np.integer]) -> TokenArray:
    """`tokens` as a contiguous int32 array `[tokens]`, without a copy where it already is one.

    Takes whatever NumPy makes an array of: lists, tuples, ranges, tensors in main memory.

    Raises:
        InputError: not one-dimensional, not integers (bools are none), negative, or beyond int32.
    """
    # 1. An array of one dimension.
    try:
        array = np.asarray(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        # Rows of uneven length; a tensor on another device, or one that wants its gradient.
        raise InputError(
            f"tokens must be a one-dimensional list or array of token ids, got {type(tokens).__name__}: {error}"
        ) from error
    if array.ndim != 1:
        what = f"shape {array.shape}" if array.ndim else type(tokens).__name__
        raise InputError(f"tokens must be one-dimensional, got {what}")
    if array.size == 0:
        return np.empty(0, np.int32)
    # 2. Integers.
    types = set(map(type, tokens)) if isinstance(tokens, list | tuple) else set()
    if bool in types:
        # NumPy takes a list of bools and integers for integers.
        raise InputError("tokens must be integers, got bools among them")
    if types == {int}:
        # Not by the array: where one is too large for NumPy's integers, that holds floats or objects.
        low, high = min(tokens), max(tokens)
    elif np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
    else:
        raise InputError(f"tokens must be integers, got {array.dtype}")
    # 3. Within int32.
    if low < 0 or high > 0x7FFFFFFF:
        raise InputError(f"token id {low if low < 0 else high} is outside 0..2147483647")
    return np.ascontiguousarray(array, np.int32)


def chunk_keys(
    namespace: bytes, tokens: bytes, chunk_tokens: int, digest: Digest = xxh3_128_digest
) -> list[bytes]:
    """Keys of every whole chunk of `tokens` (int32le bytes), each chained to the one before it."""
    token_bytes_per_chunk = chunk_tokens * TOKEN_BYTES
    key, keys = namespace, []
    for end in range(token_bytes_per_chunk, len(tokens) + 1, token_bytes_per_chunk):
        key = digest(key + tokens[end - token_bytes_per_chunk : end])
        keys.append(key)
    return keys


def chain_key(
    namespace: bytes, tokens: bytes, chunks: int, chunk_tokens: int, digest: Digest = xxh3_128_digest
) -> bytes:
    """Key of the `chunks`-th whole chunk of `tokens` (int32le bytes); the namespace digest for none."""
    key, token_bytes_per_chunk = namespace, chunk_tokens * TOKEN_BYTES
    for end in range(token_bytes_per_chunk, chunks * token_bytes_per_chunk + 1, token_bytes_per_chunk):
        key = digest(key + tokens[end - token_bytes_per_chunk : end])
    return key


def path_digests(namespace: bytes, tokens: bytes, chunk_tokens: int) -> list[bytes]:
    """sha256 chain over every whole chunk of `tokens` (int32le bytes), seeded with the namespace."""
    token_bytes_per_chunk = chunk_tokens * TOKEN_BYTES
    path, paths = namespace, []
    for end in range(token_bytes_per_chunk, len(tokens) + 1, token_bytes_per_chunk):
        path = hashlib.sha256(path + tokens[end - token_bytes_per_chunk : end]).digest()
        paths.append(path)
    return paths
