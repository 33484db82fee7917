"""Settings of eviction: the policy, and minimum shares and quotas of scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvtrie.api.byte_size import parse_bytes
from kvtrie.prefix_tree import Tier
from kvtrie.prefix_tree.policies import policy_named

OVER_QUOTA = "over its scope's quota"
"""Reason of an eviction that makes room for the chunk's own scope."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """Order of eviction of one tier. Scopes are named as dumps name them: `tenant:acme`, `shared:tools`.

    Raises:
        InputError: when a tier is made of it: an unknown policy, a malformed size, shares that do not fit.
    """

    policy: str = "lru"
    """Name of the policy: one of `kvtrie.prefix_tree.policies.named.POLICIES`."""
    shares: Mapping[str, str | int] = field(default_factory=dict)
    """Memory that a scope keeps while other scopes are above their shares, e.g. `{"tenant:acme": "512MiB"}`."""
    quotas: Mapping[str, str | int] = field(default_factory=dict)
    """Memory above which a scope's own chunks are evicted first. Requests under way may exceed it meanwhile."""

    def tier(self, name: str, capacity_bytes: int, chunk_bytes: int) -> Tier:
        """Makes a tier with these settings.

        Args:
            name: name of the tier, in dumps and figures.
            capacity_bytes: size of the tier.
            chunk_bytes: typical size of a chunk, from which follows how many keys a policy remembers.
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
        """Reason of an eviction, as dumps and counters show it."""
        return "least recently used" if self.policy == "lru" else f"chosen by {self.policy}"
