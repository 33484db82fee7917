"""A `SidecarTier` in a forked child: a connection, a loop and counts of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.errors import StoreUnavailable
from tests.forked import fork

Chains = Callable[..., Any]


def offer(tier: SidecarTier, path: Any) -> None:
    for key, record in zip(path.keys, path.records):
        assert tier.offer(path.namespace, key, lambda record=record: record)
    assert tier.flush(10.0)


def wrong(tier: SidecarTier, path: Any, times: int) -> int:
    """How many loads gave something else than the path's records."""
    return sum(tier.load(path.namespace, path.keys) != path.records for _ in range(times))


@pytest.mark.parametrize("over", ["url", "unix_url"])
def test_parent_and_child_get_their_own_answers(sidecar: Any, chain: Chains, over: str) -> None:
    mine = chain([1] * 8, Namespace(scope="tenant:parent", chunk_tokens=4))
    other = chain([2] * 16, Namespace(scope="tenant:child", chunk_tokens=4))
    tier = SidecarTier(getattr(sidecar, over), deadline_seconds=10.0)
    offer(tier, mine)
    assert wrong(tier, mine, 1) == 0

    def work() -> tuple[Any, ...]:
        before = dict(tier.stats())
        offer(tier, other)
        found = wrong(tier, other, 100)
        after = dict(tier.stats())
        tier.close()
        tier.close()
        return (
            before.get("loads", 0),
            found,
            after["loads"],
            after["written_records"],
            after.get("load_outages", 0),
        )

    children = [fork(work) for _ in range(2)]
    assert wrong(tier, mine, 100) == 0
    assert [child.result() for child in children] == [(0, 0, 100, 4, 0)] * 2
    # The children have closed theirs: the parent's loop still wakes up, on its own connection.
    assert wrong(tier, mine, 3) == 0
    offer(tier, chain([3] * 4, mine.namespace))
    stats = tier.stats()
    assert stats["written_records"] == 3
    assert stats["loads"] == 104
    assert "load_outages" not in stats
    tier.close()


def test_closing_in_a_child_that_asked_nothing(sidecar: Any, chain: Chains) -> None:
    path = chain([1] * 8)
    tier = SidecarTier(sidecar.url)
    offer(tier, path)
    assert fork(lambda: (tier.close(), tier.close())).result() == (None, None)
    assert wrong(tier, path, 3) == 0
    tier.close()


def test_locks_held_at_the_fork_do_not_hang_the_child(sidecar: Any, chain: Chains) -> None:
    path = chain([1] * 8)
    tier = SidecarTier(sidecar.url, deadline_seconds=10.0)
    offer(tier, path)
    held = tier._connection._loops.get()
    locks = [held._lock, held.breaker._lock, tier._counts.get()._lock, tier._behind._queues.get()._changed]
    for lock in locks:
        lock.acquire()
    child = fork(lambda: (wrong(tier, path, 3), tier.close()))
    for lock in reversed(locks):
        lock.release()
    assert child.result() == (0, None)
    assert wrong(tier, path, 3) == 0
    tier.close()


def test_a_sidecar_that_was_down_is_asked_anew_by_the_child(sidecar: Any, chain: Chains) -> None:
    path = chain([1] * 8)
    tier = SidecarTier(sidecar.url, deadline_seconds=10.0)
    sidecar.kill()
    with pytest.raises(StoreUnavailable):
        tier.load(path.namespace, path.keys)
    sidecar.start()
    assert fork(lambda: tier.load(path.namespace, path.keys)).result() == []
    tier.close()


def test_closed_stays_closed(sidecar: Any, chain: Chains) -> None:
    path = chain([1] * 8)
    tier = SidecarTier(sidecar.url)
    tier.close()

    def ask() -> str:
        with pytest.raises(StoreUnavailable) as caught:
            tier.load(path.namespace, path.keys)
        return str(caught.value)

    assert fork(ask).result().endswith("closed")
