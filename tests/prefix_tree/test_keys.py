"""Chunk keys, path digests, and what passes for tokens."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from kvtrie.prefix_tree import InputError
from kvtrie.prefix_tree.keys import KEY_BYTES, as_tokens, chunk_keys, path_digests

NAMESPACE = bytes(range(32))


def as_bytes(*tokens: int) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def test_keys_are_chained_from_the_namespace() -> None:
    first = xxh3_128_digest(NAMESPACE + as_bytes(1, 2))
    second = xxh3_128_digest(first + as_bytes(3, 4))
    assert chunk_keys(NAMESPACE, as_bytes(1, 2, 3, 4, 5), 2) == [first, second]
    assert len(first) == KEY_BYTES


def test_path_digests_are_a_sha256_chain() -> None:
    first = hashlib.sha256(NAMESPACE + as_bytes(1, 2)).digest()
    second = hashlib.sha256(first + as_bytes(3, 4)).digest()
    assert path_digests(NAMESPACE, as_bytes(1, 2, 3, 4, 5), 2) == [first, second]


@pytest.mark.parametrize("chain", [chunk_keys, path_digests])
def test_only_whole_chunks_have_keys(chain) -> None:
    assert [len(chain(NAMESPACE, as_bytes(*range(n)), 3)) for n in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=6), st.lists(st.integers(0, 3), min_size=6, max_size=6)
)
def test_keys_agree_as_far_as_whole_chunks_do(one: list[int], other: list[int]) -> None:
    for chain in (chunk_keys, path_digests):
        mine, theirs = (chain(NAMESPACE, as_bytes(*tokens), 2) for tokens in (one, other))
        for chunks in range(1, 4):
            same = one[: 2 * chunks] == other[: 2 * chunks]
            assert (mine[chunks - 1] == theirs[chunks - 1]) == same


def test_namespaces_share_no_key() -> None:
    tokens = as_bytes(1, 2, 3, 4)
    assert not set(chunk_keys(b"a" * 32, tokens, 2)) & set(chunk_keys(b"b" * 32, tokens, 2))
    assert not set(path_digests(b"a" * 32, tokens, 2)) & set(path_digests(b"b" * 32, tokens, 2))


def test_another_digest_may_be_passed() -> None:
    seen: list[bytes] = []

    def digest(data: bytes) -> bytes:
        seen.append(data)
        return b"k%d" % len(seen)

    assert chunk_keys(b"ns", as_bytes(7, 8), 1, digest) == [b"k1", b"k2"]
    assert seen == [b"ns" + as_bytes(7), b"k1" + as_bytes(8)]


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3],
        (1, 2, 3),
        range(1, 4),
        np.array([1, 2, 3], np.int64),
        np.array([1, 2, 3], np.uint8),
        np.array([1, 9, 2, 9, 3], np.int32)[::2],
        np.array([1, 2, 3], ">i4"),
    ],
)
def test_integers_of_any_kind_become_contiguous_int32(tokens) -> None:
    array = as_tokens(tokens)
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    assert array.tobytes() == as_bytes(1, 2, 3)


def test_an_int32_array_is_not_copied() -> None:
    array = np.array([1, 2], np.int32)
    assert as_tokens(array) is array


def test_no_tokens_are_fine() -> None:
    for nothing in ([], (), np.empty(0, np.float64)):
        assert as_tokens(nothing).shape == (0,)
        assert as_tokens(nothing).dtype == np.int32


@pytest.mark.parametrize("largest", [0, 2**31 - 1])
def test_token_ids_reach_from_0_to_the_int32_maximum(largest: int) -> None:
    assert as_tokens([largest]).tolist() == [largest]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2]], r"one-dimensional, got shape \(1, 2\)"),
        (5, "one-dimensional, got int"),
        (None, "one-dimensional, got NoneType"),
        ("the text itself", "one-dimensional, got str"),
        ({1, 2}, "one-dimensional, got set"),
        (iter([1, 2]), "one-dimensional, got list_iterator"),
        ([[1], [1, 2]], "one-dimensional list or array of token ids, got list"),
        (np.zeros((0, 3), np.int32), r"one-dimensional, got shape \(0, 3\)"),
        ([1.5], "integers, got float64"),
        (np.array([1.0]), "integers, got float64"),
        ([float("nan")], "integers, got float64"),
        ([True, False], "integers, got bool"),
        ([5, True], "integers, got bools among them"),
        (np.array([True]), "integers, got bool"),
        (np.array([1, 2], object), "integers, got object"),
        ([1, None], "integers, got object"),
        (["a"], "integers, got <U1"),
        ([3, -1], "token id -1 is outside"),
        (np.array([3, -1], np.int32), "token id -1 is outside"),
        ([2**31], "token id 2147483648 is outside"),
        (np.array([2**40]), "token id 1099511627776 is outside"),
        (np.array([2**63], np.uint64), "token id 9223372036854775808 is outside"),
        # NumPy makes objects of the first, and floats of the second.
        ([1, 2**64], "token id 18446744073709551616 is outside"),
        ([2**63, -1], "token id -1 is outside"),
    ],
)
def test_anything_else_is_refused(tokens, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_tokens(tokens)
