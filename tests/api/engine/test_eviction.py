"""Policies, minimum shares and quotas of a wrapper's own memory."""

from __future__ import annotations

from typing import Any

import pytest

from kvtrie.api import Eviction
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.prefix_tree import InputError
from kvtrie.store import MemoryStore
from tests.api.balance import CHUNK, assert_same, chunk_bytes, complete, wrapped
from tests.api.tiny_models import tiny_model

MODEL = tiny_model("llama-gqa")


def prompt(n: int) -> list[int]:
    return [10 + n % 190] * (2 * CHUNK) + [7]


def cached(wrapper: Any, n: int, tenant: str) -> int:
    (completion,) = complete(wrapper, prompt(n), new=1, tenant=tenant)
    assert_same(MODEL, completion)
    return int(completion.cached_tokens)


@pytest.mark.parametrize("policy", ["lru", "lfu", "s3fifo", "arc"])
def test_every_policy_serves_the_same_tokens(policy: str) -> None:
    with wrapped(MODEL, chunks=8, eviction=Eviction(policy)) as wrapper:
        for n in (1, 2, 3, 1, 4, 5, 1, 6, 1):
            cached(wrapper, n, "a")
        assert wrapper.stats()["evictions"] > 0


def test_a_flood_leaves_a_tenant_its_share() -> None:
    share = 2 * chunk_bytes(MODEL)
    for shares, expected in (({}, 0), ({"tenant:quiet": share}, 2 * CHUNK)):
        with wrapped(MODEL, chunks=8, eviction=Eviction(shares=shares)) as wrapper:
            assert cached(wrapper, 0, "quiet") == 0
            for n in range(1, 12):
                cached(wrapper, n, "loud")
            assert cached(wrapper, 0, "quiet") == expected


def test_a_tenant_over_its_quota_makes_room_for_itself() -> None:
    quota = 4 * chunk_bytes(MODEL)
    with wrapped(MODEL, chunks=32, eviction=Eviction(quotas={"tenant:loud": quota})) as wrapper:
        cached(wrapper, 0, "quiet")
        for n in range(1, 9):
            cached(wrapper, n, "loud")
            assert wrapper.stats()["device"]["scopes"]["tenant:loud"]["used_bytes"] <= quota
        assert cached(wrapper, 0, "quiet") == 2 * CHUNK
        assert wrapper.take_snapshot().counters["evictions.over its scope's quota"] > 0


def test_what_cannot_be_configured() -> None:
    for eviction, says in (
        (Eviction("mru"), "no eviction policy is named 'mru'"),
        (Eviction(shares={"tenant:a": "1TiB"}), "minimum shares in tier device"),
        (Eviction(quotas={"tenant:a": "lots"}), "size 'lots'"),
    ):
        with pytest.raises(InputError, match=says), wrapped(MODEL, eviction=eviction):
            pass


def test_a_wrapper_that_cannot_be_made_closes_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(MemoryStore):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    for setting, options in (("100", {}), ("", {"eviction": Eviction("mru")})):
        monkeypatch.setenv("KVTRIE_TRACE", "/tmp/never-written" if setting else "")
        monkeypatch.setenv("KVTRIE_TRACE_BYTES", setting or "1MiB")
        store = Closed()
        with pytest.raises(InputError), wrapped(MODEL, store=StoreTier(store), **options):
            pass
        assert store.is_closed
