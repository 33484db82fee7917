"""The host tier without HTTP: what it takes, what it refuses, what it evicts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvtrie.api.eviction import Eviction
from kvtrie.api.sidecar.sidecar import PutOutcome, Sidecar, SidecarConfig
from kvtrie.api.tiers.homes import NAMESPACE_BYTES
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.prefix_tree import ChunkShape, Namespace, check
from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import decode_record, encode_namespace_record, encode_record

A, B = "tenant:a", "tenant:b"
Chains = Callable[..., Any]


def sidecar(
    memory_bytes: int = 1 << 20, store_key: bytes | None = None, eviction: Eviction | None = None
) -> Sidecar:
    return Sidecar(
        SidecarConfig(
            memory_bytes=memory_bytes,
            chunk_tokens=4,
            store_key=store_key,
            eviction=eviction or Eviction(),
        )
    )


def put(to: Sidecar, records: list[bytes], scope: str = A) -> PutOutcome:
    outcome = PutOutcome()
    to.put(scope, records, outcome)
    check(to.held.tree)
    return outcome


def forged(record: bytes, **changes: Any) -> bytes:
    """An intact record with other fields."""
    return encode_record(replace(decode_record(record), **changes))


class TestPut:
    def test_a_path_is_held_and_served(self, chain: Chains) -> None:
        path, here = chain(list(range(12))), sidecar()
        outcome = put(here, path.records)
        assert (outcome.stored, outcome.held, outcome.rejected) == (3, 0, {})
        assert outcome.unnamed == {path.namespace.digest}
        assert here.get(A, path.namespace.digest, path.keys) == path.records
        assert here.get(A, path.namespace.digest, path.keys[1:]) == path.records[1:]
        assert put(here, path.records).held == 3
        assert here.held.tier.used_bytes == sum(map(len, path.records))

    def test_every_flipped_bit_is_rejected(self, chain: Chains) -> None:
        (record,) = chain([1, 2, 3, 4]).records
        here = sidecar()
        for place in range(len(record)):
            damaged = bytearray(record)
            damaged[place] ^= 1 << (place % 8)
            outcome = put(here, [bytes(damaged)])
            assert outcome.stored == 0, f"byte {place}"
            assert sum(outcome.rejected.values()) == 1
        assert len(record) > 200
        assert len(here.held.tree) == 0
        assert here.held.tier.free_bytes == here.held.tier.capacity_bytes

    def test_every_truncation_is_rejected(self, chain: Chains) -> None:
        (record,) = chain([1, 2, 3, 4]).records
        outcome = put(sidecar(), [record[:end] for end in range(len(record))])
        assert outcome.stored == 0
        assert set(outcome.rejected) == {"truncated"}

    def test_an_intact_record_that_does_not_chain_is_rejected_by_reason(self, chain: Chains) -> None:
        path, other = chain(list(range(8))), chain([9, 9, 9, 9, 4, 5, 6, 7])
        first, second = path.records
        here = sidecar()
        put(here, [first])
        for reason, record in (
            ("parent", other.records[1]),
            ("key", forged(second, key=bytes(16))),
            ("path", forged(second, path_digest=bytes(32))),
            ("depth", forged(second, depth=3)),
            ("key", forged(second, tokens=bytes(16))),
            ("shape", chain(list(range(8)), shape=ChunkShape(1, 1, 8, 2, 2, "float32")).records[0]),
            ("shape", forged(second, shape=ChunkShape(2, 1, 4, 2, 2, "float32"), payload=bytes(128))),
        ):
            assert put(here, [record]).rejected == {reason: 1}
        assert put(here, [second]).stored == 1

    def test_a_store_key_is_asked_for(self, chain: Chains) -> None:
        key = b"0123456789abcdef"
        sealed, plain = chain([1, 2, 3, 4], store_key=key), chain([1, 2, 3, 4])
        assert put(sidecar(store_key=key), plain.records).rejected == {"checksum": 1}
        assert put(sidecar(store_key=key), sealed.records).stored == 1
        assert put(sidecar(), sealed.records).rejected == {"checksum": 1}

    def test_a_namespace_record_names_the_namespace(self, chain: Chains) -> None:
        namespace = Namespace(scope="tenant:me", model_config="m", chunk_tokens=4)
        path, here = chain([1, 2, 3, 4], namespace), sidecar()
        name = encode_namespace_record(namespace, created_at_seconds=1)
        assert put(here, [name, *path.records]).unnamed == set()
        (shown,) = here.snapshot(None).namespaces
        assert shown.digest == namespace.digest.hex()
        assert (shown.fields["model_config"], shown.scope) == ("m", A)
        assert here.held.tier.pending_bytes == NAMESPACE_BYTES + len(name)
        wrong = encode_namespace_record(Namespace(scope="x", chunk_tokens=64), created_at_seconds=1)
        assert put(here, [wrong]).rejected == {"shape": 1}

    def test_a_scope_has_a_bounded_number_of_namespaces(self, chain: Chains) -> None:
        here = sidecar(8 << 20)
        paths = [chain([1, 2, 3, 4], Namespace(scope=str(n), chunk_tokens=4)) for n in range(257)]
        outcome = put(here, [path.records[0] for path in paths])
        assert (outcome.stored, outcome.rejected) == (256, {"full": 1})
        assert put(here, paths[-1].records, B).stored == 1

    def test_namespaces_that_hold_nothing_are_no_bound(self, chain: Chains) -> None:
        """Of 1,000 namespaces that were only named, the last 256 are kept."""
        here = sidecar(8 << 20)
        namespaces = [Namespace(scope=str(n), chunk_tokens=4) for n in range(1000)]
        names = [encode_namespace_record(namespace, created_at_seconds=1) for namespace in namespaces]
        assert put(here, names).stored == 1000
        assert [home.namespace for home in here.held.homes({A})] == [n.digest for n in namespaces[-256:]]
        assert here.held.tier.pending_bytes == sum(NAMESPACE_BYTES + len(name) for name in names[-256:])
        assert here.counters.summed({A})["forgotten_namespaces"] == 744
        assert put(here, chain([1, 2, 3, 4], namespaces[0]).records).stored == 1, "one that comes back"


class TestFull:
    def test_least_recently_used_leaves_go_first(self, chain: Chains) -> None:
        paths = [chain([n] * 8) for n in range(4)]
        size = len(paths[0].records[0])
        here = sidecar(NAMESPACE_BYTES + 6 * size)
        for path in paths[:3]:
            assert put(here, path.records).stored == 2
        digest = paths[0].namespace.digest
        assert here.get(A, digest, paths[0].keys) == paths[0].records
        assert put(here, paths[3].records).stored == 2
        assert [len(here.held.get(A, digest, path.keys)) for path in paths] == [2, 0, 2, 2]
        shown = here.snapshot({A})
        assert {stone.key for stone in shown.tombstones} == {key.hex() for key in paths[1].keys}
        assert shown.counters["evictions.least recently used"] == 2

    def test_a_scope_over_its_quota_makes_room_for_itself(self, chain: Chains) -> None:
        paths = [chain([n] * 8) for n in range(4)]
        size = len(paths[0].records[0])
        here = sidecar(eviction=Eviction(quotas={A: NAMESPACE_BYTES + 4 * size}))
        assert put(here, paths[0].records, B).stored == 2
        for path in paths[1:]:
            assert put(here, path.records).stored == 2
        digest = paths[0].namespace.digest
        assert [len(here.held.get(A, digest, path.keys)) for path in paths[1:]] == [0, 2, 2]
        assert len(here.held.get(B, digest, paths[0].keys)) == 2, "the other scope's stay"
        assert here.snapshot({A}).counters["evictions.over its scope's quota"] == 2

    def test_a_scope_keeps_its_share_of_a_flood(self, chain: Chains) -> None:
        own = chain([1] * 8)
        size = len(own.records[0])
        here = sidecar(
            2 * NAMESPACE_BYTES + 6 * size, eviction=Eviction(shares={B: NAMESPACE_BYTES + 2 * size})
        )
        assert put(here, own.records, B).stored == 2
        for n in range(2, 12):
            assert put(here, chain([n] * 8).records).stored == 2
        assert len(here.held.get(B, own.namespace.digest, own.keys)) == 2

    def test_another_policy(self, chain: Chains) -> None:
        paths = [chain([n] * 4) for n in range(3)]
        here = sidecar(NAMESPACE_BYTES + 2 * len(paths[0].records[0]), eviction=Eviction("lfu"))
        digest = paths[0].namespace.digest
        put(here, paths[0].records)
        for _ in range(3):
            here.get(A, digest, paths[0].keys)
        put(here, paths[1].records)
        put(here, paths[2].records)
        assert [len(here.held.get(A, digest, path.keys)) for path in paths] == [1, 0, 1]
        assert here.snapshot({A}).counters["evictions.chosen by lfu"] == 1
        with pytest.raises(InputError, match="no eviction policy is named 'mru'"):
            sidecar(eviction=Eviction("mru"))

    def test_a_path_is_never_evicted_for_its_own_next_chunk(self, chain: Chains) -> None:
        path = chain(list(range(20)))
        size = len(path.records[0])
        here = sidecar(NAMESPACE_BYTES + 3 * size)
        outcome = put(here, path.records)
        assert (outcome.stored, dict(outcome.rejected)) == (3, {"full": 1, "parent": 1})
        assert here.get(A, path.namespace.digest, path.keys) == path.records[:3]

    def test_a_namespace_whose_chunks_are_evicted_makes_room_too(self, chain: Chains) -> None:
        """A thousand tenants of an engine, one after the other, through memory for two."""
        paths = [chain([1] * 8, Namespace(scope=str(n), chunk_tokens=4)) for n in range(1000)]
        names = [encode_namespace_record(path.namespace, created_at_seconds=1) for path in paths]
        two = sum(NAMESPACE_BYTES + len(names[-1]) + len(r) for path in paths[:2] for r in path.records[:1])
        here = sidecar(two + 4 * len(paths[0].records[0]))
        for name, path in zip(names, paths):
            assert put(here, [name, *path.records]).stored == 3
            tier = here.held.tier
            assert tier.used_bytes + tier.pending_bytes + tier.free_bytes == tier.capacity_bytes
        assert [home.namespace for home in here.held.homes(None)] == [p.namespace.digest for p in paths[-2:]]
        assert here.get(A, paths[-1].namespace.digest, paths[-1].keys) == paths[-1].records

    def test_an_empty_namespace_goes_before_any_chunk(self, chain: Chains) -> None:
        """Large names that hold nothing do not cost others their chunks: a 16 MiB sidecar filled with them."""
        own = chain([1] * 8)
        here = sidecar(16 << 20)
        put(here, own.records, B)
        for n in range(300):
            large = Namespace(scope=str(n), layout="x" * 60000, chunk_tokens=4)
            assert put(here, [encode_namespace_record(large, created_at_seconds=1)]).stored == 1
        assert here.get(B, own.namespace.digest, own.keys) == own.records
        assert "evictions.least recently used" not in here.counters.summed(None)

    def test_names_do_not_keep_others_out(self, chain: Chains) -> None:
        """One chunk each holds 300 large names: the least recently used of them make way for another scope."""
        here = sidecar(16 << 20)
        for n in range(300):
            path = chain([1, 2, 3, 4], Namespace(scope=str(n), layout="x" * 60000, chunk_tokens=4))
            name = encode_namespace_record(path.namespace, created_at_seconds=1)
            put(here, [name, *path.records])
        large = ChunkShape(layers=64, kv_heads=4, chunk_tokens=4, key_dim=64, value_dim=64, dtype="float32")
        path = chain(list(range(40)), shape=large)
        assert sum(map(len, path.records)) > 5 << 20
        assert put(here, path.records, B).stored == 10
        assert len(here.held.homes({A})) > 100, "no more make way than have to"

    def test_a_scope_over_its_quota_forgets_its_own_empty_namespaces(self, chain: Chains) -> None:
        here = sidecar(eviction=Eviction(quotas={A: 3 * NAMESPACE_BYTES}))
        for scope in (B, A):
            for n in range(20):
                empty = Namespace(scope=str(n), chunk_tokens=4)
                assert put(here, [encode_namespace_record(empty, created_at_seconds=1)], scope).stored == 1
        assert len(here.held.homes({A})) == 2
        assert len(here.held.homes({B})) == 20
        assert here.held.tier.occupied_bytes(A) <= 3 * NAMESPACE_BYTES

    def test_what_can_never_fit_evicts_nothing(self, chain: Chains) -> None:
        small = chain([1, 2, 3, 4])
        here = sidecar(NAMESPACE_BYTES + 1000)
        put(here, small.records)
        big = chain([5, 6, 7, 8], shape=ChunkShape(16, 1, 4, 2, 2, "float32"))
        assert put(here, big.records).rejected == {"full": 1}
        assert here.get(A, small.namespace.digest, small.keys) == small.records

    def test_books_balance_through_random_traffic(self, chain: Chains) -> None:
        dice = random.Random(7)
        here = sidecar(NAMESPACE_BYTES * 2 + 5000)
        for _ in range(250):
            path = chain([dice.randrange(3) for _ in range(4 * dice.randrange(1, 6))])
            scope = dice.choice([A, B])
            put(here, path.records, scope)
            served = here.get(scope, path.namespace.digest, path.keys)
            assert served == path.records[: len(served)]
            tier = here.held.tier
            assert tier.used_bytes + tier.pending_bytes + tier.free_bytes == tier.capacity_bytes
            index = sum(len(home.by_key) for home in here.held.homes(None))
            assert index == tier.chunks
        assert here.counters.summed(None)["evictions.least recently used"] > 100


class TestScopes:
    def test_the_same_namespace_and_tokens_share_nothing(self, chain: Chains) -> None:
        path, here = chain(list(range(8))), sidecar()
        put(here, path.records, A)
        assert here.get(B, path.namespace.digest, path.keys) == []
        assert here.match(B, path.namespace.digest, path.tokens + bytes(4)) == 0
        assert put(here, path.records, B).stored == 2
        assert here.held.tier.chunks == 4
        for scope in (A, B):
            shown = here.snapshot({scope})
            assert set(shown.tiers[0].scopes) == {scope}
            assert shown.tiers[0].used_bytes == sum(map(len, path.records))
            assert [node.key for node in shown.nodes] == [key.hex() for key in path.keys]

    def test_a_snapshot_of_one_does_not_change_with_the_other(self, chain: Chains) -> None:
        mine, other, here = chain([1] * 8), chain([2] * 40), sidecar(6 * 1024 + 8192)
        put(here, mine.records, A)
        before = replace(here.snapshot({A}), taken_at=0.0)
        put(here, other.records, B)
        assert replace(here.snapshot({A}), taken_at=0.0) == before

    def test_snapshots_of_the_tree_parse(self, chain: Chains) -> None:
        here = sidecar()
        put(here, chain(list(range(8))).records)
        shown = here.snapshot(None)
        assert type(shown).from_json(shown.to_json()) == shown
        assert [node.parent for node in shown.nodes] == [None, 0]

    def test_scopes_that_were_only_asked_for_are_not_told_apart_for_ever(self) -> None:
        counters = ScopeCounters(most_scopes=3)
        for number in range(10):
            counters.add(f"shared:{number}", "matches")
            counters.add("tenant:busy", "matches", 2)
        counted = counters.by_scope()
        assert counted == {
            "others": {"matches": 8},
            "shared:8": {"matches": 1},
            "shared:9": {"matches": 1},
            "tenant:busy": {"matches": 20},
        }
        assert counters.summed(None) == {"matches": 30}
        assert counters.summed({"shared:9", "shared:1"}) == {"matches": 1}


class TestMatch:
    def test_leaves_one_token_to_compute(self, chain: Chains) -> None:
        path, here = chain(list(range(8))), sidecar()
        put(here, path.records)
        digest = path.namespace.digest
        assert here.match(A, digest, path.tokens) == 1
        assert here.match(A, digest, path.tokens + bytes(4)) == 2
        assert here.match(A, digest, b"") == 0
        assert here.match(A, bytes(32), path.tokens) == 0


@pytest.mark.parametrize("size", [0, 1, 1024, NAMESPACE_BYTES])
def test_memory_that_holds_no_chunk_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"memory of {size} bytes holds no chunk"):
        SidecarConfig(memory_bytes=size)


def test_what_is_received_has_a_budget() -> None:
    assert SidecarConfig(memory_bytes=1 << 20).receive_budget_bytes == 64 << 20
    assert SidecarConfig(memory_bytes=8 << 30).receive_budget_bytes == 1 << 30
    assert SidecarConfig(receive_bytes=4 << 20).receive_budget_bytes == 4 << 20
    with pytest.raises(InputError, match="receive_bytes must be at least 4194304, got 1"):
        SidecarConfig(receive_bytes=1)


def test_chunks_of_no_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="chunk_tokens must be at least 1, got 0"):
        SidecarConfig(chunk_tokens=0)
