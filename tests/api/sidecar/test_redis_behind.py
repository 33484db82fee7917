"""A Redis behind sidecars: what one has written another serves, scope by scope, if it is intact."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvtrie.api.sidecar.scoped_store import scoped_key
from kvtrie.api.sidecar.sidecar import PutOutcome, Sidecar, SidecarConfig
from kvtrie.prefix_tree import Namespace, check
from kvtrie.prefix_tree.errors import StoreUnavailable
from kvtrie.store import MemoryStore, RedisStore, encode_namespace_record, open_store

SCOPE = "tenant:default"
Chains = Callable[..., Any]


def over(store: Any, memory_bytes: int = 1 << 20) -> Sidecar:
    return Sidecar(SidecarConfig(memory_bytes=memory_bytes, chunk_tokens=4), store=store)


def filled(store: Any, path: Any, scope: str = SCOPE) -> None:
    """Lays a path into `store` the way a sidecar does."""
    name = encode_namespace_record(path.namespace, created_at_seconds=1)
    store.put_many([(scoped_key(scope, path.namespace.digest, path.namespace.digest[:16]), name)])
    store.put_many(
        [(scoped_key(scope, path.namespace.digest, k), r) for k, r in zip(path.keys, path.records)]
    )


class TestProcesses:
    def test_a_second_sidecar_has_hits_from_the_first(
        self, start_sidecar: Callable[..., Any], redis_server: Any, chain: Chains
    ) -> None:
        from kvtrie.api.tiers.sidecar_tier import SidecarTier

        path = chain(list(range(400)))
        first, second = start_sidecar(store=redis_server.url), start_sidecar(store=redis_server.url)
        writer, reader = SidecarTier(first.url), SidecarTier(second.url)
        name = encode_namespace_record(path.namespace, created_at_seconds=1)
        assert writer.offer(path.namespace, path.namespace.digest[:16], lambda: name)
        for key, record in zip(path.keys, path.records):
            assert writer.offer(path.namespace, key, lambda record=record: record)
        assert writer.flush(10.0)
        store = RedisStore(redis_server.url)
        end = time.monotonic() + 10.0
        while sum(1 for _ in store.scan()) < 101:
            assert time.monotonic() < end
            time.sleep(0.02)
        # From the middle: the path above is read too, so that what is served can be kept.
        assert reader.load(path.namespace, path.keys[50:]) == path.records[50:]
        redis_server.kill()
        assert reader.load(path.namespace, path.keys) == path.records
        with second.http() as http:
            assert http.get("/readyz").json() == {"ready": True, "store": "unavailable"}
            assert http.get("/v1/tree").json()["namespaces"][0]["digest"] == path.namespace.digest.hex()
        for closable in (writer, reader, store):
            closable.close()

    def test_a_hung_redis_costs_no_hit_of_the_host_tier(
        self, start_sidecar: Callable[..., Any], redis_server: Any, chain: Chains
    ) -> None:
        from kvtrie.api.tiers.sidecar_tier import SidecarTier

        path = chain(list(range(16)))
        sidecar = start_sidecar(store=redis_server.url)
        tier = SidecarTier(sidecar.url)
        for key, record in zip(path.keys[:2], path.records):
            assert tier.offer(path.namespace, key, lambda record=record: record)
        assert tier.flush(10.0)
        redis_server.stop()
        assert tier.load(path.namespace, path.keys) == path.records[:2]
        redis_server.cont()
        tier.close()


class TestFallThrough:
    def test_what_is_read_is_kept_and_named(self, chain: Chains) -> None:
        path, store = chain(list(range(400))), MemoryStore()
        filled(store, path)
        here = over(store)
        assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records
        store.close()
        assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records
        assert here.held.is_named(SCOPE, path.namespace.digest)
        check(here.held.tree)

    def test_scopes_do_not_meet_in_the_store(self, chain: Chains) -> None:
        path, store = chain(list(range(8))), MemoryStore()
        filled(store, path, "tenant:other")
        assert over(store).get(SCOPE, path.namespace.digest, path.keys) == []
        digest, key = path.namespace.digest, path.keys[0]
        assert len({scoped_key(s, digest, key) for s in ("tenant:a", "tenant:b", "shared:a")}) == 3

    @pytest.mark.parametrize("depth", [0, 3, 7])
    def test_a_damaged_record_ends_the_prefix_before_it(self, chain: Chains, depth: int) -> None:
        path, store = chain(list(range(40))), MemoryStore()
        for place in range(len(path.records[depth])):
            filled(store, path)
            damaged = bytearray(path.records[depth])
            damaged[place] ^= 0x10
            store.put_many([(scoped_key(SCOPE, path.namespace.digest, path.keys[depth]), bytes(damaged))])
            here = over(store)
            assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records[:depth], place
            assert here.held.tier.chunks == depth
            here.close()
            store = MemoryStore()

    def test_another_intact_record_is_not_served(self, chain: Chains) -> None:
        path, other, store = chain(list(range(12))), chain([9] * 12), MemoryStore()
        filled(store, path)
        foreign = chain(list(range(12)), Namespace(scope="x", chunk_tokens=4))
        for wrong in (other.records[1], path.records[0], foreign.records[1]):
            store.put_many([(scoped_key(SCOPE, path.namespace.digest, path.keys[1]), wrong)])
            for start in (0, 1):
                served = over(store).get(SCOPE, path.namespace.digest, path.keys[start:])
                assert served == path.records[start:1]

    def test_a_gap_above_is_a_miss(self, chain: Chains) -> None:
        path, store = chain(list(range(40))), MemoryStore()
        filled(store, path)
        store.delete_many([scoped_key(SCOPE, path.namespace.digest, path.keys[2])])
        here = over(store)
        assert here.get(SCOPE, path.namespace.digest, path.keys[5:]) == []
        assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records[:2]

    def test_what_does_not_fit_is_served_all_the_same(self, chain: Chains) -> None:
        path, store = chain(list(range(40))), MemoryStore()
        filled(store, path)
        here = over(store, memory_bytes=6000)
        assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records
        assert 0 < here.held.tier.chunks < 10
        check(here.held.tree)

    def test_an_outage_is_a_shorter_prefix(self, chain: Chains) -> None:
        path = chain(list(range(8)))
        store = MemoryStore()
        here = over(store)
        outcome = PutOutcome()
        here.put(SCOPE, path.records[:1], outcome)
        store.close()
        with pytest.raises(StoreUnavailable):
            store.get_many([b"x"])
        assert here.get(SCOPE, path.namespace.digest, path.keys) == path.records[:1]
        assert here.counters.summed(None)["store_outages"] == 1
        assert here.store_state() == "unavailable"

    def test_an_unreachable_redis_starts_all_the_same(self, chain: Chains) -> None:
        path = chain(list(range(8)))
        here = over(open_store("redis://127.0.0.1:1", deadline_seconds=0.3))
        assert here.get(SCOPE, path.namespace.digest, path.keys) == []
        here.close()
