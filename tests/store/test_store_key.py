"""The store key of the environment: none, one of 16 to 64 bytes, or an error."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import store_key_from_environment


def test_unset_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVTRIE_STORE_KEY", raising=False)
    assert store_key_from_environment() is None


@pytest.mark.parametrize("key", ["k" * 16, "k" * 64, "é" * 8])
def test_its_bytes(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("KVTRIE_STORE_KEY", key)
    assert store_key_from_environment() == key.encode()


@pytest.mark.parametrize(
    ("key", "said"), [("", "KVTRIE_STORE_KEY is empty"), ("k" * 15, "got 15"), ("k" * 65, "got 65")]
)
def test_anything_else_is_an_error(monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
    monkeypatch.setenv("KVTRIE_STORE_KEY", key)
    with pytest.raises(InputError, match=said):
        store_key_from_environment()
