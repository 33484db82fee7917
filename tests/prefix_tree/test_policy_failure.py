"""A policy that raises: no handle is lost, the books stay right, and eviction goes on by LRU."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kvtrie.prefix_tree import (
    Evicted,
    Lease,
    LeastRecentlyUsed,
    Namespace,
    Node,
    PrefixTree,
    Residence,
    Tier,
    check,
)

BYTES = 24
NEVER = 10**9
METHODS = ("add", "used", "finished", "victim")


class Failing(LeastRecentlyUsed):
    """LRU whose `method` raises once, at its `at`-th call, after it has done its work or before."""

    def __init__(self, method: str, at: int, error: BaseException, after: bool) -> None:
        super().__init__()
        self.calls = 0
        self.at = at
        inner = getattr(super(), method)

        def failing(*arguments: Any) -> Any:
            self.calls += 1
            fails = self.calls == self.at
            if fails and not after:
                raise error
            result = inner(*arguments)
            if fails:
                raise error
            return result

        setattr(self, method, failing)


class Owner:
    """Owns handles as the pool does: a number is free or in the tree, never both."""

    def __init__(self, policy: LeastRecentlyUsed, **limits: Any) -> None:
        self.tier = Tier("device", BYTES, policy, **limits)
        self.tree = PrefixTree(1, [self.tier])
        self.free = set(range(BYTES))
        self.leases: list[Lease] = []
        self.turn = 0

    def request(self, scope: str, tokens: list[int]) -> None:
        """Matches, evicts, stores and leases; ends the lease of the request before the last."""
        packed = b"".join(token.to_bytes(4, "little") for token in tokens)
        root = self.tree.root(Namespace(scope, chunk_tokens=1))
        match = self.tree.match(root, packed)
        lease = self.tree.lease(match)
        self.leases.append(lease)
        missing = len(tokens) - len(match.path)
        if missing > len(self.free):
            self.give(self.tree.evict(0, missing - len(self.free)))
        if missing:
            handles = [self.free.pop() for _ in range(missing)]
            self.tree.extend(lease, self.tree.insert_path(match, packed, 0, handles, 1)[-1])
        if len(self.leases) > 2:
            self.tree.release(self.leases.pop(0))

    def give(self, evicted: list[Evicted]) -> None:
        for chunk in evicted:
            assert isinstance(chunk.handle, int)
            assert chunk.handle not in self.free
            self.free.add(chunk.handle)

    def handles(self) -> list[object]:
        return [here.handle for node in self.tree.walk() if (here := node.at[0]) is not None]

    def assert_whole(self) -> None:
        """Every handle is free or in the tree, and every invariant but the policy's own success holds."""
        held = self.handles()
        assert sorted([*held, *self.free], key=str) == sorted(range(BYTES), key=str)
        error, self.tier.policy_error = self.tier.policy_error, None
        check(self.tree)
        self.tier.policy_error = error

    def some_requests(self) -> None:
        for self.turn in range(40):
            scope = "ab"[self.turn % 2]
            self.request(scope, [1, 2, 3, self.turn % 7, self.turn, self.turn + 1][: 3 + self.turn % 4])
            self.assert_whole()


@pytest.mark.parametrize("limits", [{}, {"shares": {"a": 6}, "quotas": {"b": 14}}], ids=["plain", "limits"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_requests_go_on_by_lru_when_the_policy_fails(
    method: str, after: bool, limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for at in (1, 2, 3, 5, 8, 13):
        caplog.clear()
        owner = Owner(Failing(method, at, ZeroDivisionError("policy"), after), **limits)
        with caplog.at_level(logging.ERROR):
            owner.some_requests()
        assert isinstance(owner.tier.policy_error, ZeroDivisionError)
        (record,) = caplog.records
        assert "tier device: its eviction policy failed" in record.getMessage()
        assert record.exc_info is not None
        for lease in owner.leases:
            owner.tree.release(lease)
        held = len(owner.handles())
        assert len(owner.tree.evict(0, BYTES)) == held, "nothing stays that nothing holds"


def test_limits_hold_after_the_policy_has_failed(make_forest) -> None:
    """The scope above its quota gives first, and the one within its share last."""
    tier = Tier(
        "device", 100, Failing("victim", 1, ValueError("x"), True), shares={"kept": 3}, quotas={"over": 1}
    )
    forest = make_forest()
    forest.tree = PrefixTree(2, [tier, Tier("host", 1)])
    kept = [forest.store("kept", [n, n])[0] for n in range(3)]
    over = [forest.store("over", [n, n])[0] for n in range(2)]
    other = [forest.store("other", [n, n])[0] for n in range(2)]
    assert forest.evict(0, 1) == over[:1]
    assert forest.evict(0, 3) == [over[1], *other]
    assert isinstance(tier.policy_error, ValueError)
    assert set(forest.tree.walk()) == set(kept)


def test_check_names_the_policy_that_failed(forest) -> None:
    tier = forest.tree.tiers[0]
    tier.policy.used = lambda *_: 1 // 0
    forest.store("a", [1, 2])
    forest.tree.lease(forest.match("a", [1, 2]))
    with pytest.raises(AssertionError, match="device: its policy raised ZeroDivisionError"):
        check(forest.tree)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["add", "victim"])
def test_an_interrupted_eviction_gives_what_it_took_out(method: str, after: bool) -> None:
    """`KeyboardInterrupt` in the policy's code: it reaches the caller, and what had left is not lost."""
    for at in range(1, 12):
        policy = Failing(method, NEVER, KeyboardInterrupt(), after)
        owner = Owner(policy)
        for number in range(6):
            owner.request("a", [number, number + 50, number + 90])
        while owner.leases:
            owner.tree.release(owner.leases.pop())
        assert len(owner.handles()) == 18
        policy.at = policy.calls + at
        with pytest.raises(KeyboardInterrupt):
            owner.tree.evict(0, BYTES)
        left = owner.tree.untold(0)
        assert 0 <= len(left) < 18
        assert len(owner.handles()) == owner.tier.chunks == 18 - len(left)
        owner.give(left)
        owner.assert_whole()
        owner.give(owner.tree.evict(0, BYTES))
        assert owner.free == set(range(BYTES))
        assert owner.tree.evictions.total() == 18
        assert owner.tier.policy_error is None
        check(owner.tree)


def test_the_next_eviction_gives_what_nobody_asked_for(forest) -> None:
    nodes: list[Node] = [forest.store("a", [n, n])[0] for n in range(4)]
    tier, calls = forest.tree.tiers[0], 0
    victim = tier.policy.victim

    def interrupted() -> Residence | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return victim()

    tier.policy.victim = interrupted
    with pytest.raises(KeyboardInterrupt):
        forest.tree.evict(0, 4)
    assert forest.evict(0, 3) == nodes[:3]
    assert forest.tree.untold(0) == []
    assert forest.tree.evictions.total() == 3
    check(forest.tree)
