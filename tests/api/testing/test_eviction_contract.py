"""The suite for eviction policies fails a policy that breaks a rule, by the check of that rule."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree import EvictionPolicy, Residence
from kvtrie.testing import EvictionPolicyContract
from tests.api.testing.failed_checks import failed_checks

LIMITS = "shares_and_quotas_work_on_top"
SERVING = {"every_chunk_is_evicted_in_the_end_and_only_from_the_ends_of_paths", LIMITS}
INNER = "an_inner_chunk_is_evicted_after_all_its_descendants"
HELD = "a_held_leaf_is_not_evicted_until_it_is_released"
ONCE = "every_leaf_is_returned_once"
DISCARDED = "a_discarded_leaf_is_not_returned"
TWICE = "a_leaf_that_is_queued_twice_is_returned_once"
QUEUED = "in_is_true_while_a_leaf_is_queued"
REQUESTS = "requests_queue_nothing"


class FirstIn:
    """A sound policy: leaves are evicted in the order in which they were queued."""

    def __init__(self) -> None:
        self.queue: list[Residence] = []

    def add(self, residence: Residence) -> None:
        if residence not in self.queue:
            self.queue.append(residence)

    def discard(self, residence: Residence) -> None:
        if residence in self.queue:
            self.queue.remove(residence)

    def used(self, residence: Residence, tick: int) -> None:
        """Nothing: uses do not count."""

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """Nothing: uses do not count."""

    def victim(self) -> Residence | None:
        while self.queue:
            residence = self.queue.pop(0)
            if residence.evictable:
                return residence
        return None

    def __contains__(self, residence: Residence) -> bool:
        return residence in self.queue


class EvictsHeldLeaves(FirstIn):
    def victim(self) -> Residence | None:
        while self.queue:
            residence = self.queue.pop(0)
            if not residence.children:
                return residence
        return None


class LosesHeldLeavesForGood(FirstIn):
    """A leaf that was passed over once is not queued again."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[Residence] = []

    def add(self, residence: Residence) -> None:
        if residence not in self.passed:
            super().add(residence)

    def victim(self) -> Residence | None:
        self.passed += [residence for residence in self.queue if residence.holds]
        return super().victim()


class EvictsParentsFirst(FirstIn):
    """Returns the parent of the leaf that it should return, unless that has been evicted."""

    def victim(self) -> Residence | None:
        residence = super().victim()
        parent = None if residence is None else residence.node.parent
        here = None if parent is None else parent.at[0]
        if here is None:
            return residence
        assert residence is not None
        self.add(residence)
        return here


class ForgetsSomeLeaves(FirstIn):
    """Those of a certain token, which only one check stores."""

    def add(self, residence: Residence) -> None:
        if residence.node.tokens[0] % 10 != 7:
            super().add(residence)


class KeepsWhatItReturned(FirstIn):
    def victim(self) -> Residence | None:
        residence = super().victim()
        if residence is not None:
            self.queue.append(residence)
        return residence


class DiscardsNothing(FirstIn):
    def discard(self, residence: Residence) -> None:
        """Nothing."""


class DiscardsOnlyWhatIsQueued(FirstIn):
    def discard(self, residence: Residence) -> None:
        self.queue.remove(residence)


class QueuesAReturnedLeafTwice(FirstIn):
    def __init__(self) -> None:
        super().__init__()
        self.returned: set[Residence] = set()

    def add(self, residence: Residence) -> None:
        if residence in self.returned:
            self.queue.append(residence)
        else:
            super().add(residence)

    def victim(self) -> Residence | None:
        residence = super().victim()
        if residence is not None:
            self.returned.add(residence)
        return residence


class ContainsEverything(FirstIn):
    def __contains__(self, residence: Residence) -> bool:
        return True


class ContainsNothing(FirstIn):
    def __contains__(self, residence: Residence) -> bool:
        return False


class QueuesWhatIsUsed(FirstIn):
    """As if every residence that a request used were queued."""

    def used(self, residence: Residence, tick: int) -> None:
        self.add(residence)


class RaisesForUnqueuedLeaves(FirstIn):
    def finished(self, residence: Residence, matched_chunks: int) -> None:
        self.queue[self.queue.index(residence)] = residence


class NeverTakesAReturnedLeafAgain(FirstIn):
    def __init__(self) -> None:
        super().__init__()
        self.returned: set[Residence] = set()

    def add(self, residence: Residence) -> None:
        if residence not in self.returned:
            super().add(residence)

    def victim(self) -> Residence | None:
        residence = super().victim()
        if residence is not None:
            self.returned.add(residence)
        return residence


@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        (EvictsHeldLeaves, {HELD}),
        (LosesHeldLeavesForGood, {HELD}),
        (EvictsParentsFirst, {INNER, *SERVING}),
        (ForgetsSomeLeaves, {ONCE}),
        (KeepsWhatItReturned, {INNER, HELD, ONCE, DISCARDED, TWICE, QUEUED, REQUESTS, *SERVING}),
        (DiscardsNothing, {DISCARDED, QUEUED, REQUESTS, LIMITS}),
        (DiscardsOnlyWhatIsQueued, {DISCARDED}),
        (QueuesAReturnedLeafTwice, {TWICE, LIMITS}),
        (ContainsEverything, {QUEUED, REQUESTS}),
        (ContainsNothing, {QUEUED, REQUESTS, *SERVING}),
        (QueuesWhatIsUsed, {REQUESTS, LIMITS}),
        (RaisesForUnqueuedLeaves, {REQUESTS, *SERVING}),
        (NeverTakesAReturnedLeafAgain, {TWICE, LIMITS}),
        (FirstIn, set()),
    ],
)
def test_the_checks_of_the_broken_rule_fail_and_no_others(broken: type[FirstIn], failed: set[str]) -> None:
    class Suite(EvictionPolicyContract):
        def make_policy(self) -> EvictionPolicy:
            return broken()

    assert failed_checks(Suite) == failed
