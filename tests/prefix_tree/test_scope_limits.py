"""Minimum shares and quotas: whom they spare, whom they cost, and what a flood does with and without them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from kvtrie.prefix_tree import EvictionPolicy, InputError, Tier, check
from kvtrie.prefix_tree.policies import policy_named
from kvtrie.prefix_tree.policies.named import POLICIES

DEVICE = 0


def limited(forest, capacity_bytes: int = 1_000, policy: EvictionPolicy | None = None, **limits: Any) -> Tier:
    tier = Tier("device", capacity_bytes, policy, **limits)
    forest.tree.tiers[DEVICE] = tier
    return tier


def test_a_scope_keeps_its_minimum_share_while_others_have_more(forest) -> None:
    limited(forest, shares={"a": 2})
    mine = [forest.store("a", [n, n])[0] for n in range(4)]
    theirs = [forest.store("b", [n, n])[0] for n in range(3)]
    assert forest.evict(DEVICE, 3) == [mine[0], mine[1], theirs[0]]
    assert forest.evict(DEVICE, 2) == theirs[1:]
    check(forest.tree)
    assert forest.evict(DEVICE, 9) == mine[2:], "nobody else has anything: its share goes too"


def test_what_a_scope_stores_beyond_its_share_is_as_good_as_anybodys(forest) -> None:
    limited(forest, shares={"a": 2})
    mine = [forest.store("a", [n, n])[0] for n in range(2)]
    theirs = [forest.store("b", [n, n])[0] for n in range(2)]
    assert forest.evict(DEVICE, 1) == [theirs[0]]
    new = forest.store("a", [7, 7])[0]
    assert forest.evict(DEVICE, 2) == [mine[0], theirs[1]]
    check(forest.tree)
    assert forest.evict(DEVICE, 2) == [mine[1], new]


def test_what_is_in_use_while_it_is_set_aside_is_not_given_up(forest) -> None:
    limited(forest, shares={"a": 2})
    first, second = (forest.store("a", [n, n])[0] for n in range(2))
    (other,) = forest.store("b", [9, 9])
    assert forest.evict(DEVICE, 1) == [other]
    assert second in forest.tree.walk()
    lease = forest.tree.lease_node(first)
    assert forest.evict(DEVICE, 2) == [second]
    forest.tree.release(lease)
    check(forest.tree)
    assert forest.evict(DEVICE, 2) == [first]


def test_reserved_bytes_count_as_the_scopes(forest) -> None:
    tier = limited(forest, shares={"a": 2}, quotas={"b": 3})
    (mine,) = forest.store("a", [1, 1])
    (theirs,) = forest.store("b", [1, 1])
    tier.reserve("a", 2)
    assert forest.evict(DEVICE, 1) == [mine]
    tier.reserve("b", 2)
    assert tier.over_quota_bytes("b") == 0
    assert tier.over_quota_bytes("b", 2) == 2
    assert tier.over_quota_bytes("a", 500) == 0
    assert forest.evict(DEVICE, 1) == [theirs]


def test_a_scope_above_its_quota_gives_first_and_its_oldest(forest) -> None:
    tier = limited(forest, quotas={"b": 2})
    (older,) = forest.store("a", [1, 1])
    theirs = [forest.store("b", [n, n])[0] for n in range(4)]
    assert tier.over_quota_bytes("b") == 2
    assert forest.evict(DEVICE, 3) == [*theirs[:2], older]
    assert forest.evict(DEVICE, 1) == [theirs[2]]
    check(forest.tree)


def test_only_a_scope_with_a_quota_can_be_made_to_give(forest) -> None:
    limited(forest, quotas={"b": 2})
    (mine,) = forest.store("a", [1, 1])
    theirs = [forest.store("b", [n, n])[0] for n in range(2)]
    gone = forest.tree.evict(DEVICE, 1, "quota", scope="b")
    assert [evicted.node for evicted in gone] == [theirs[0]]
    assert len(forest.tree.evict(DEVICE, 9, "quota", scope="b")) == 1
    with pytest.raises(InputError, match="scope a has no quota in tier device"):
        forest.tree.evict(DEVICE, 1, scope="a")
    with pytest.raises(InputError, match="scope b has no quota in tier host"):
        forest.tree.evict(1, 1, scope="b")
    assert forest.evict(DEVICE, 1) == [mine]


def test_a_tenants_continuations_of_a_shared_path_are_its_own_bytes(forest) -> None:
    limited(forest, shares={"s": 1}, quotas={"a": 1})
    shared = forest.store("s", [1, 2])
    mine = forest.store("a", [1, 2, 3, 4, 5, 6], ["s"])
    assert forest.evict(DEVICE, 2) == [mine[2], mine[1]]
    assert forest.evict(DEVICE, 1) == shared


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"shares": {"a": -1}}, "minimum share of scope a in tier device is -1"),
        ({"shares": {"a": 6, "b": 5}}, "minimum shares in tier device are 11 bytes together, of 10"),
        ({"shares": {"a": 6}, "quotas": {"a": 5}}, "scope a may occupy 5 bytes of tier device, and keep 6"),
        ({"quotas": {"a": 0}}, "quota of scope a in tier device is 0 bytes"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tier("device", 10, **limits)


@pytest.mark.parametrize("name", POLICIES)
def test_shares_hold_under_any_policy(forest, name: str) -> None:
    """Random requests of three scopes, one of which has more than its share only now and then."""
    rng = random.Random(5)
    shares = {"a": 12, "b": 6}
    tier = limited(forest, policy=policy_named(name, capacity_chunks=30), shares=shares, quotas={"c": 20})
    floor: dict[str, int] = {}
    for step in range(400):
        scope = rng.choices("abc", (1, 1, 4))[0]
        forest.store(scope, [rng.randint(1, 4) for _ in range(2 * rng.randint(1, 4))])
        if tier.used_bytes > 30:
            before = {s: min(tier.occupied_bytes(s), share) for s, share in shares.items()}
            forest.evict(DEVICE, tier.used_bytes - 30)
            for s in shares:
                # Thirty bytes are more than all shares: somebody else always has something to give.
                assert tier.occupied_bytes(s) >= before[s]
                floor[s] = min(floor.get(s, 99), tier.occupied_bytes(s)) if before[s] == shares[s] else 99
        if step % 40 == 0:
            check(forest.tree)
    assert floor.keys() == shares.keys()


# ---- flood


def others_hit_ratio(make_forest, flood: bool, shares: Mapping[str, int] | None) -> float:
    """Four tenants ask for their own popular prompts; with `flood`, a fifth asks ten times as often as all of
    them for prompts that nobody ever asks for again. Room for 400 chunks of 1,440."""
    rng = random.Random(17)
    forest = make_forest(chunk_tokens=1, capacity_bytes=10_000)
    tier = limited(forest, 10_000, shares=shares)
    asked = hit = 0
    for scope, prompt in requests(rng, flood):
        match = forest.match(scope, prompt)
        if scope != "flood":
            asked += len(prompt)
            hit += match.tokens
        lease = forest.tree.lease(match)
        nodes = match.path + forest.tree.insert_path(
            match, forest.bytes(prompt), DEVICE, range(len(prompt) - len(match.path)), 1
        )
        forest.tree.extend(lease, nodes[-1])
        forest.tree.release(lease)
        forest.tree.evict(DEVICE, tier.used_bytes - 400)
    return hit / asked


def requests(rng: random.Random, flood: bool) -> Iterator[tuple[str, list[int]]]:
    popular = [[rng.randrange(1 << 30) for _ in range(6)] for _ in range(60)]
    for _ in range(500):
        yield f"tenant {rng.randrange(4)}", popular[min(59, int(rng.expovariate(1 / 12)))]
        if flood:
            yield from (("flood", [rng.randrange(1 << 30) for _ in range(4)]) for _ in range(10))


def test_a_flood_costs_the_others_little_with_minimum_shares(make_forest) -> None:
    shares = {f"tenant {n}": 98 for n in range(4)}
    calm = others_hit_ratio(make_forest, flood=False, shares=None)
    defended = others_hit_ratio(make_forest, flood=True, shares=shares)
    undefended = others_hit_ratio(make_forest, flood=True, shares=None)
    assert calm > 0.3
    assert undefended < 0.5 * calm
    assert defended > 0.95 * calm
