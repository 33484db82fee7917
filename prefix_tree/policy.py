"""The order in which a tier gives up its leaves: the protocol. Policies are in `policies/`, a file each.

A policy sees leaves only: residences without a resident child in their tier. An inner node's turn comes when its
last child has gone; by then it has inherited what the policy needs to know of its descendants: `uses`,
`last_use`, `credit` (see `Residence`). So whatever a policy decides, a tier stays prefix-closed.
"""

from __future__ import annotations

from typing import Protocol

from kvtrie.prefix_tree.node import Residence


class EvictionPolicy(Protocol):
    """Orders one tier's evictable residences. A residence that stops being evictable may stay queued
    until it comes up: that is what keeps leases and touches O(1)."""

    def add(self, residence: Residence) -> None:
        """Queues a residence that has just become evictable; queueing it twice changes nothing."""

    def discard(self, residence: Residence) -> None:
        """Forgets a residence that leaves by another way than `victim`; nothing if it is not queued."""

    def used(self, residence: Residence, tick: int) -> None:
        """A request has come that ends here: once per request and tier, at the deepest resident node of its path.

        Its `uses` count the request already; its `last_use` is still the one before, and becomes `tick` next.
        """

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """A request is through: once per request and tier, at the deepest resident node of its path, before its
        hold there ends. `matched_chunks` of the path were resident when it came; its time is the node's
        `used_seconds`, on the tree's steady clock.
        """

    def victim(self) -> Residence | None:
        """Takes out the residence to evict next, or returns None when there is none."""

    def __contains__(self, residence: Residence) -> bool:
        """Whether it is queued: every evictable residence of the tier is."""
