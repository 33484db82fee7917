"""Who goes when memory is short: the policy, and what scopes are promised and allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtrie.api.byte_size import parse_bytes
from kvtrie.prefix_tree import Tier
from kvtrie.prefix_tree.policies import policy_named

OVER_QUOTA = "over its scope's quota"
"""Why a chunk was evicted, where its scope made room for itself."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """How one tier evicts. Scopes are named as dumps name them: `tenant:acme`, `shared:tools`.

    Raises:
        InputError: when a tier is made of it: an unknown policy, a malformed size, shares that do not fit.
    """

    policy: str = "lru"
    """One of `kvtrie.prefix_tree.policies.named.POLICIES`."""
    shares: Mapping[str, str | int] = field(default_factory=dict)
    """Memory that a scope keeps while others have any above theirs, e.g. `{"tenant:acme": "512MiB"}`."""
    quotas: Mapping[str, str | int] = field(default_factory=dict)
    """Memory beyond which a scope's own chunks go first. Requests under way may exceed it for their time."""

    def tier(self, name: str, capacity_bytes: int, chunk_bytes: int) -> Tier:
        """A tier that evicts like this.

        Args:
            name: of the tier.
            capacity_bytes: of the tier.
            chunk_bytes: of a chunk, about: how many the policy should remember follows from it.
        """
        return Tier(
            name,
            capacity_bytes,
            policy_named(self.policy, capacity_chunks=max(1, capacity_bytes // chunk_bytes)),
            shares={scope: parse_bytes(size) for scope, size in self.shares.items()},
            quotas={scope: parse_bytes(size) for scope, size in self.quotas.items()},
        )

    @property
    def reason(self) -> str:
        """Why a chunk was evicted, as dumps and counters say it."""
        return "least recently used" if self.policy == "lru" else f"chosen by {self.policy}"
