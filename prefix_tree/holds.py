"""All holds of a tree: leases of requests in flight, and operators' pins. `held_paths.py` has a single one.

`Holds` counts holds and uses, and stamps what is used with a tick and a time, so that policies and people see
when. It changes no structure: nodes are stored and evicted by the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from kvtrie.prefix_tree.errors import InputError, PinBudgetExceeded
from kvtrie.prefix_tree.held_paths import Lease, Pin, held_bytes, residences_to_hold
from kvtrie.prefix_tree.match import Match
from kvtrie.prefix_tree.node import Node, Residence
from kvtrie.prefix_tree.pin_book import PinBook
from kvtrie.prefix_tree.tier import Tier


class Holds:
    """Leases and pins of one tree.

    Args:
        tiers: the tree's.
        steady: seconds of a clock that is never set.
        pin_budget_bytes: most bytes each scope may pin; None for no limit.
    """

    def __init__(
        self, tiers: Sequence[Tier], steady: Callable[[], float], pin_budget_bytes: int | None
    ) -> None:
        self._tiers = tiers
        self.steady = steady
        self.tick = 0
        """Counts leases, releases and stored chunks: the order of `Residence.last_use`."""
        self.leases: set[Lease] = set()
        self.pin_book = PinBook()
        self.pins: Set[Pin] = self.pin_book.pins
        """Pins in force, and those whose time is over that nothing has run into yet."""
        self._pin_budget_bytes = pin_budget_bytes

    def lease(self, match: Match) -> Lease:
        """See `PrefixTree.lease`."""
        lease = self.lease_node(match.node, 1)
        if match.cached_tokens:
            (match.partial if match.partial is not None else match.node).hits += 1
        return lease

    def lease_node(self, node: Node, uses: int) -> Lease:
        """See `PrefixTree.lease_node`."""
        held = residences_to_hold(node)
        if uses:
            for residence in held:
                residence.uses += uses
                tier = self._tiers[residence.tier]
                try:
                    tier.policy.used(residence, self.tick + 1)
                except Exception as error:
                    tier.give_up_policy(error)
        self._hold(node, held)
        lease = Lease(node, held, uses)
        self.leases.add(lease)
        return lease

    def extend(self, lease: Lease, node: Node) -> None:
        """See `PrefixTree.extend`."""
        held = residences_to_hold(node)
        self._hold(node, held)
        for residence in held:
            residence.uses += lease.uses
        for residence in lease.held:
            residence.uses -= lease.uses
        left, lease.node, lease.held = lease.held, node, held
        self._unhold(left)

    def release(self, lease: Lease) -> None:
        """See `PrefixTree.release`."""
        self.leases.remove(lease)
        self.tick = tick = self.tick + 1
        lease.node.used_seconds = self.steady()
        for residence in lease.held:
            residence.last_use = tick
        if lease.uses:
            for residence in lease.held:
                tier = self._tiers[residence.tier]
                try:
                    tier.policy.finished(residence, lease.matched.get(residence.tier, 0))
                except Exception as error:
                    tier.give_up_policy(error)
        self._unhold(lease.held)

    def pin(self, node: Node, name: str, seconds: float | None) -> Pin:
        """See `PrefixTree.pin`."""
        if node.depth == 0:
            raise InputError("nothing to pin: the prompt has no whole chunk in the cache")
        if not node.is_resident:
            raise InputError("nothing to pin: the prompt's last whole chunk is still being computed")
        if seconds is not None and not seconds > 0:
            raise InputError(
                f"a pin for {seconds} seconds holds nothing; give more than 0, or no time at all"
            )
        self.expire_pins()
        if self._pin_budget_bytes is not None:
            pinned = self.pin_book.bytes_with(node)
            if pinned > self._pin_budget_bytes:
                raise PinBudgetExceeded(
                    f"pinning {name or 'this path'} would hold {pinned} bytes for scope {node.root.scope}, whose "
                    f"budget is {self._pin_budget_bytes}; unpin something, or raise the budget"
                )
        ends_seconds = None if seconds is None else self.steady() + seconds
        pin = Pin(node, residences_to_hold(node), name, ends_seconds)
        self._hold(node, pin.held)
        self.pin_book.add(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        """See `PrefixTree.unpin`."""
        if pin in self.pins:
            self.pin_book.remove(pin)
            self._unhold(pin.held)

    def expire_pins(self) -> None:
        """See `PrefixTree.expire_pins`."""
        now = self.steady()
        while (pin := self.pin_book.over(now)) is not None:
            self.unpin(pin)

    def hold_at_most(self, tier: int, size_bytes: int) -> bool:
        """Whether the paths under leases and pins take at most so many bytes of a tier, each chunk counted once."""
        seen: set[Node] = set()
        held = held_bytes(self.leases, tier, seen)
        if held > size_bytes:
            return False
        # Scopes' pins may overlap, and chunks may be smaller here than elsewhere: this is the most they can hold.
        if held + self.pin_book.size_bytes <= size_bytes:
            return True
        return held + held_bytes(self.pins, tier, seen) <= size_bytes

    def nodes_of(self, tier: int) -> set[Node]:
        """See `PrefixTree.held_nodes`."""
        seen: set[Node] = set()
        held_bytes(self.leases, tier, seen)
        held_bytes(self.pins, tier, seen)
        return seen

    def _hold(self, node: Node, held: list[Residence]) -> None:
        # Of a path that ends in a lower tier, the upper tiers' part is in use too.
        self.tick = tick = self.tick + 1
        node.used_seconds = self.steady()
        for residence in held:
            residence.last_use = tick
            residence.holds += 1

    def _unhold(self, held: list[Residence]) -> None:
        for residence in held:
            residence.holds -= 1
            self._tiers[residence.tier].settle(residence)
