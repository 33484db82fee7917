"""A prefix tree of one tier, which has the policy under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtrie.prefix_tree import EvictionPolicy, Namespace, Node, PrefixTree, Residence, Tier
from kvtrie.prefix_tree.keys import as_tokens

DEVICE = 0


class OneTierTree:
    """Chunks of one token and of one byte; its user keeps the capacity, by calling `evict`.

    Args:
        policy: of the tier.
        limits: `shares` and `quotas` of scopes, as `Tier` takes them.
    """

    def __init__(self, policy: EvictionPolicy, **limits: Any) -> None:
        self.policy = policy
        self.tier = Tier("device", 1_000, policy, **limits)
        self.tree = PrefixTree(1, [self.tier])

    def ask(self, tokens: Sequence[int], scope: str = "a") -> list[Node]:
        """One request from beginning to end: match, lease, store the missing chunks, release. Returns its
        path."""
        packed = as_tokens(tokens).astype("<i4").tobytes()
        match = self.tree.match(self.tree.root(Namespace(scope, chunk_tokens=1)), packed)
        lease = self.tree.lease(match)
        path = match.path
        if len(path) < len(tokens):
            path = path + self.tree.insert_path(match, packed, DEVICE, range(len(path), len(tokens)), 1)
            self.tree.extend(lease, path[-1])
        self.tree.release(lease)
        self.assert_policy_raised_nothing()
        return path

    def leaves(self, count: int) -> list[Residence]:
        """Stores `count` paths of one chunk each. Returns where their chunks are in the tier, oldest
        first."""
        stored = [self.ask([number])[0].at[DEVICE] for number in range(count)]
        return [residence for residence in stored if residence is not None]

    def evict(self, size_bytes: int) -> list[Node]:
        """Evicts chunks of so many bytes together, or as many as may be evicted."""
        evicted = [chunk.node for chunk in self.tree.evict(DEVICE, size_bytes)]
        self.assert_policy_raised_nothing()
        return evicted

    def assert_policy_raised_nothing(self) -> None:
        """A tier evicts by LRU once its policy has raised, so without this no check would see it."""
        assert self.tier.policy_error is None, f"the policy raised {self.tier.policy_error!r}"
