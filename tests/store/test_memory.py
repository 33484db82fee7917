"""What only the memory store does: count its bytes and refuse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtrie.prefix_tree.errors import InputError, StoreFull
from kvtrie.store import MemoryStore


def test_a_full_store_refuses_and_keeps_what_it_has() -> None:
    store = MemoryStore(capacity_bytes=10)
    store.put_many([(b"a", b"1234"), (b"b", b"1234")])
    assert store.used_bytes == 10
    with pytest.raises(StoreFull, match="10 of 10 bytes used"):
        store.put_many([(b"c", b"")])
    store.put_many([(b"a", b"4321")])
    assert store.get_many([b"a", b"b", b"c"]) == [b"4321", b"1234", None]
    store.delete_many([b"b"])
    store.put_many([(b"c", b"1234")])
    assert store.used_bytes == 10


def test_a_negative_capacity_is_named() -> None:
    with pytest.raises(InputError, match="got -1"):
        MemoryStore(capacity_bytes=-1)


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([b"a", b"bb", b"ccc"]), st.binary(max_size=12)), max_size=30
    )
)
@settings(max_examples=100, deadline=None)
def test_bytes_are_accounted(steps: list[tuple[bool, bytes, bytes]]) -> None:
    store = MemoryStore(capacity_bytes=25)
    held: dict[bytes, bytes] = {}
    for put, key, value in steps:
        if not put:
            store.delete_many([key])
            held.pop(key, None)
        else:
            after = {**held, key: value}
            if sum(len(k) + len(v) for k, v in after.items()) <= 25:
                store.put_many([(key, value)])
                held = after
            else:
                with pytest.raises(StoreFull):
                    store.put_many([(key, value)])
        assert store.used_bytes == sum(len(k) + len(v) for k, v in held.items())
        assert store.get_many(sorted(held)) == [held[key] for key in sorted(held)]
