"""What every eviction policy must do: `kvtrie.prefix_tree.EvictionPolicy`, rule by rule."""

from __future__ import annotations

import random

from kvtrie.prefix_tree import EvictionPolicy, check
from kvtrie.testing.one_tier_tree import DEVICE, OneTierTree

_REQUESTS = 1000
_CAPACITY_BYTES = 40


class EvictionPolicyContract:
    """Derive `TestMyPolicy` from it and override `make_policy`. The checks hold for any order of eviction."""

    def make_policy(self) -> EvictionPolicy:
        """A policy that has no leaves. The checks keep 40 chunks at most where capacity matters. Override
        it."""
        raise NotImplementedError(f"{type(self).__name__} must override make_policy")

    def test_every_chunk_is_evicted_in_the_end_and_only_from_the_ends_of_paths(self) -> None:
        """A thousand requests over a small tier: the tier stays within its capacity, every evictable leaf is
        queued (`check` looks at all invariants of the tree), and at the end every chunk can be evicted."""
        self._serve(OneTierTree(self.make_policy()))

    def test_shares_and_quotas_work_on_top(self) -> None:
        """The same requests where one scope has a minimum share and another a quota. Leaves that are set
        aside for a share are taken from the policy by `victim`, and come back to it by `add`."""
        cache = OneTierTree(self.make_policy(), shares={"a": 10}, quotas={"b": 15})
        self._serve(cache)

    def _serve(self, cache: OneTierTree) -> None:
        rng = random.Random(3)
        for number in range(_REQUESTS):
            prompt = [rng.randint(1, 3) for _ in range(rng.randint(1, 9))]
            cache.ask(prompt, scope=rng.choice("abc"))
            if cache.tier.used_bytes > _CAPACITY_BYTES:
                evicted = cache.evict(cache.tier.used_bytes - _CAPACITY_BYTES)
                assert [node for node in evicted if node.at[DEVICE] is not None] == []
            assert cache.tier.used_bytes <= _CAPACITY_BYTES
            if number % 50 == 0:
                check(cache.tree)
        assert len(cache.evict(1_000)) == _CAPACITY_BYTES
        assert len(cache.tree) == 0
        assert cache.policy.victim() is None

    def test_an_inner_chunk_is_evicted_after_all_its_descendants(self) -> None:
        """`victim` returns no residence that has children; the parent is queued by `add` when its last one
        leaves."""
        cache = OneTierTree(self.make_policy())
        path = cache.ask([1, 2, 3])
        fork = cache.ask([1, 2, 4])[-1]
        evicted = cache.evict(1_000)
        assert len(evicted) == 4
        assert set(evicted[:2]) == {path[2], fork}
        assert evicted[2:] == [path[1], path[0]]

    def test_a_held_leaf_is_not_evicted_until_it_is_released(self) -> None:
        """`victim` returns no residence with holds: such a leaf may stay queued, and is passed over. After
        its release `add` is called again, and it can be evicted."""
        cache = OneTierTree(self.make_policy())
        held, other = cache.ask([1])[0], cache.ask([2])[0]
        lease = cache.tree.lease_node(held)
        assert cache.evict(1_000) == [other]
        assert other not in cache.tree.walk()
        cache.tree.release(lease)
        assert cache.evict(1_000) == [held]

    def test_every_leaf_is_returned_once(self) -> None:
        """`victim` returns every queued leaf, none twice, and then None."""
        cache = OneTierTree(self.make_policy())
        leaves = cache.leaves(50)
        returned = [cache.policy.victim() for _ in leaves]
        assert len(set(returned)) == 50
        assert set(returned) == set(leaves)
        assert cache.policy.victim() is None

    def test_a_discarded_leaf_is_not_returned(self) -> None:
        """`discard` forgets a leaf, and does nothing for a leaf that is not queued."""
        cache = OneTierTree(self.make_policy())
        leaves = cache.leaves(200)
        for residence in leaves[:-1]:
            cache.policy.discard(residence)
            cache.policy.discard(residence)
        assert cache.policy.victim() is leaves[-1]
        assert cache.policy.victim() is None

    def test_a_leaf_that_is_queued_twice_is_returned_once(self) -> None:
        """`add` changes nothing for a leaf that is queued, and takes one that was discarded or returned
        before."""
        cache = OneTierTree(self.make_policy())
        (leaf,) = cache.leaves(1)
        cache.policy.add(leaf)
        assert [cache.policy.victim(), cache.policy.victim()] == [leaf, None]
        cache.policy.add(leaf)
        cache.policy.add(leaf)
        assert [cache.policy.victim(), cache.policy.victim()] == [leaf, None]

    def test_in_is_true_while_a_leaf_is_queued(self) -> None:
        """`residence in policy` is true from `add` until `discard` or `victim` takes the residence out."""
        cache = OneTierTree(self.make_policy())
        first, second = cache.leaves(2)
        assert first in cache.policy and second in cache.policy
        cache.policy.discard(first)
        assert first not in cache.policy and second in cache.policy
        assert cache.policy.victim() is second
        assert second not in cache.policy
        cache.policy.add(first)
        assert first in cache.policy

    def test_requests_queue_nothing(self) -> None:
        """`used` and `finished` are called for residences that are queued and for those that are not, and
        change at most the order: afterwards the same leaves are queued."""
        cache = OneTierTree(self.make_policy())
        queued, free = cache.leaves(2)
        cache.policy.discard(free)
        for tick in (100, 101):
            for residence in (queued, free):
                residence.uses += 1
                cache.policy.used(residence, tick)
                residence.last_use = tick
                cache.policy.finished(residence, 1)
        assert queued in cache.policy and free not in cache.policy
        assert [cache.policy.victim(), cache.policy.victim()] == [queued, None]
