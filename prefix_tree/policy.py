"""The protocol of eviction policies: the order in which a tier's leaves are evicted. `policies/` has one per file.

A policy sees leaves only: residences without a resident child in their tier. An inner node becomes
a leaf when its last child is evicted; by then it has inherited its descendants' `uses`, `last_use` and `credit`
(see `Residence`). So whatever a policy decides, a tier stays prefix-closed.
"""

from __future__ import annotations

from typing import Protocol

from kvtrie.prefix_tree.node import Residence


class EvictionPolicy(Protocol):
    """Orders one tier's evictable residences: leaves that no lease and no pin holds.

    A residence that stops being evictable may stay queued until `victim` reaches it and drops it
    (`Residence.evictable`): that keeps leases and touches O(1). Methods are called under the owner's lock. If one
    raises, the tier evicts by LRU from then on. `kvtrie.testing.EvictionPolicyContract` checks an implementation,
    rule by rule.
    """

    def add(self, residence: Residence) -> None:
        """Queues a residence that has just become evictable; queueing it twice changes nothing."""

    def discard(self, residence: Residence) -> None:
        """Forgets a residence that leaves the tier without `victim`; does nothing if it is not queued."""

    def used(self, residence: Residence, tick: int) -> None:
        """Called at the start of a request: once per tier, with the deepest resident node of its path.

        `residence.uses` counts the request already; `residence.last_use` is still the previous one, and becomes
        `tick` next.
        """

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """Called at the end of a request: once per tier, with the deepest resident node of its path, before its
        lease ends. `matched_chunks` of the path were resident when the request started; its time is the node's
        `used_seconds`, on the tree's steady clock.
        """

    def victim(self) -> Residence | None:
        """Takes out the residence to evict next, which is `evictable`, or returns None when there is none."""

    def __contains__(self, residence: Residence) -> bool:
        """Whether a residence is queued, as every evictable residence of the tier is."""
