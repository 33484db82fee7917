"""Slots that cannot be had cost nobody anything, and whatever goes wrong in an eviction loses none."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kvtrie.api.engine.kv_memory import DEVICE, KvMemory
from kvtrie.api.eviction import Eviction
from kvtrie.prefix_tree import ChunkShape, Lease, Namespace, Node, Residence, tree_copy
from kvtrie.prefix_tree.roots import ROOT_BYTES
from tests.api.balance import CHUNK, complete, wrapped
from tests.api.tiny_models import tiny_model

SHAPE = ChunkShape(1, 1, 2, 1, 1, "float32")


class Memory(KvMemory):
    """A pool of ten chunks, filled by hand."""

    def __init__(self, slots: int = 10, **options: object) -> None:
        super().__init__(SHAPE, slots * SHAPE.chunk_bytes, **options)  # type: ignore[arg-type]

    def fill(self, scope: str, *tokens: int) -> list[Node]:
        """Stores a path of one chunk for each of `tokens`."""
        root = self.tree.root(Namespace(scope, chunk_tokens=2))
        packed = np.repeat(np.asarray(tokens, "<i4"), 2).tobytes()
        match = self.tree.match(root, packed)
        slots = self.take(scope, len(tokens) - len(match.path))
        assert slots is not None
        size = self.shape.chunk_bytes
        self.tree.tiers[DEVICE].unreserve(scope, len(slots) * size)
        nodes = match.path + self.tree.insert_path(match, packed, DEVICE, slots, size)
        self.check()
        return nodes

    @property
    def chunks(self) -> int:
        """In the tree."""
        return self.tree.tiers[DEVICE].chunks


@pytest.mark.parametrize("count", [7, 8, 10, 11, 10_000])
def test_what_cannot_be_had_evicts_nothing(count: int) -> None:
    """Nine chunks in ten slots, four of them held by a lease and a pin that share one: six can be had."""
    memory = Memory()
    first = memory.fill("a", 1, 2, 3)
    second = memory.fill("a", 1, 4)
    memory.fill("b", 5, 6, 7, 8, 9)
    lease = memory.tree.lease_node(first[-1])
    memory.tree.pin(second[-1])
    assert memory.take("a", count) is None
    assert memory.chunks == 9
    assert memory.tree.evictions.total() == 0
    memory.check()
    taken = memory.take("a", 6)
    assert taken is not None
    assert memory.chunks == 4
    memory.give("a", taken)
    memory.tree.release(lease)
    memory.check()


def test_what_only_a_pin_s_end_makes_room_for_can_be_had() -> None:
    memory = Memory()
    now = 0.0
    memory.tree.steady = lambda: now
    memory.tree.pin(memory.fill("a", *range(9))[-1], seconds=5)
    assert memory.take("a", 3) is None
    assert memory.chunks == 9
    now = 5.0
    assert memory.take("a", 3) is not None
    memory.check()


def test_a_tenant_above_its_quota_that_cannot_be_served_loses_nothing() -> None:
    quota = 2 * SHAPE.chunk_bytes
    memory = Memory(eviction=Eviction(quotas={"a": quota}))
    leases: list[Lease] = [memory.tree.lease_node(memory.fill("b", *range(6))[-1])]
    memory.fill("a", 1)
    memory.fill("a", 2)
    assert memory.take("a", 5) is None
    assert memory.chunks == 8
    taken = memory.take("a", 4)
    assert taken is not None
    memory.give("a", taken)
    for lease in leases:
        memory.tree.release(lease)
    memory.check()


def test_one_slot_that_cannot_be_had() -> None:
    memory = Memory(slots=2)
    lease = memory.tree.lease_node(memory.fill("a", 1, 2)[-1])
    assert memory.take("a", 1) is None
    assert memory.chunks == 2
    memory.tree.release(lease)
    assert memory.take("a", 1) is not None
    memory.check()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_policy_that_raises_in_the_middle_loses_no_slot(error: type[BaseException]) -> None:
    """An interrupt reaches the caller; a fault of the policy costs its order, not the request."""
    memory = Memory()
    for number in range(5):
        memory.fill("a", number, number + 10)
    tier, calls = memory.tree.tiers[DEVICE], 0
    victim = tier.policy.victim

    def third_raises() -> Residence | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return victim()

    tier.policy.victim = third_raises  # type: ignore[method-assign]
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            memory.take("a", 4)
        assert (memory.chunks, memory.pool.free_slots.free) == (8, 2)
        memory.check()
    taken = memory.take("a", 4)
    assert taken is not None
    assert len(set(taken)) == 4
    assert memory.chunks == 6
    tier.policy_error = None
    memory.check()


def test_what_is_remembered_of_tenants_that_left_is_bounded() -> None:
    memory = Memory()
    for number in range(400):
        memory.fill(f"tenant:{number}", 1, 2, 3, 4, 5)
    figures = memory.tree.figures()
    in_the_pool = 2
    assert memory.chunks == 5 * in_the_pool
    bound = (256 << 10) + in_the_pool * ROOT_BYTES
    assert figures["tombstone_bytes"] + figures["namespace_bytes"] <= bound
    assert figures["namespaces"] < 200
    assert figures["tombstones"] > 100


def test_requests_go_on_while_a_snapshot_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's lock is free by the time the first chunk is pictured, and what changes then does not show."""
    with wrapped(tiny_model("llama-gqa"), chunks=32) as cached:
        complete(cached, list(range(2 * CHUNK + 1)), new=1)
        held = len(cached.engine.memory.tree)
        done = threading.Event()

        def serve() -> None:
            complete(cached, list(range(50, 50 + 3 * CHUNK)), new=1)
            done.set()

        view, threads = tree_copy.NodeView, [threading.Thread(target=serve, daemon=True)]

        def slow_view(**fields: object) -> object:
            for thread in threads:
                thread.start()
            threads.clear()
            assert done.wait(60.0), "a request waits for the snapshot"
            return view(**fields)  # type: ignore[arg-type]

        monkeypatch.setattr(tree_copy, "NodeView", slow_view)
        picture = cached.take_snapshot()
        assert len(picture.nodes) == held
        assert len(cached.engine.memory.tree) > held
        assert picture.counters["requests"] == 1


def test_stats_show_namespaces_tombstones_and_pins() -> None:
    with wrapped(tiny_model("llama-gqa"), chunks=32) as cached:
        cached.warm(list(range(2 * CHUNK)), pin=60.0)
        stats = cached.stats()
        shape = cached.engine.memory.shape
        assert (stats["pins"], stats["pinned_bytes"]) == (1, 2 * shape.chunk_bytes)
        assert stats["namespaces"] == 1
        assert stats["namespace_bytes"] > 0
        assert (stats["tombstones"], stats["tombstone_bytes"]) == (0, 0)
