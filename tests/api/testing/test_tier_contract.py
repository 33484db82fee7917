"""The suite for lower tiers fails a tier that breaks a rule, by the check of that rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kvtrie.api import LowerTier
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.errors import StoreUnavailable
from kvtrie.testing import LowerTierContract
from tests.api.testing.failed_checks import failed_checks

ORDER = "offered_records_are_loaded_in_path_order"
GAP = "a_load_ends_at_the_first_chunk_that_is_missing"
WITHIN = "a_load_may_begin_within_a_path"
APART = "namespaces_are_apart"
MADE = "a_record_is_made_before_offer_returns"
AGAIN = "a_record_may_be_offered_again"
NAMED = "a_namespaces_own_record_is_taken"
FLUSH = "flush_says_whether_everything_is_written"
STATS = "stats_are_numbers_by_name"
CLOSED = "a_closed_tier_is_a_miss_or_an_outage"
EVERY_ROUND_TRIP = {ORDER, GAP, WITHIN, APART, AGAIN, NAMED}


class Held:
    """A sound tier: a dict."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.is_open = True

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        if not self.is_open:
            raise StoreUnavailable("closed")
        found: list[bytes] = []
        for key in keys:
            if key not in self.records:
                break
            found.append(self.records[key])
        return found

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        if self.is_open:
            self.records[key] = make()
        return self.is_open

    def flush(self, timeout_seconds: float) -> bool:
        return True

    def stats(self) -> Mapping[str, int | float]:
        return {"records": len(self.records)}

    def close(self) -> None:
        self.is_open = False


class RaisesForAMiss(Held):
    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        found = super().load(namespace, keys)
        if not found and keys:
            raise KeyError(keys[0])
        return found


class LoadsBackwards(Held):
    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        return super().load(namespace, keys)[::-1]


class LoadsAfterAGap(Held):
    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        return super().load(namespace, [key for key in keys if key in self.records])


class LoadsWholePathsOnly(Held):
    """Wants the first chunk of a path among the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[Namespace, bytes] = {}

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        if key != namespace.digest[:16]:
            self.first.setdefault(namespace, key)
        return super().offer(namespace, key, make)

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        found = super().load(namespace, keys)
        return found if keys and keys[0] == self.first.get(namespace) else []


class OneNamespace(Held):
    """Holds the records of the namespace that was offered last."""

    last: Namespace | None = None

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        if self.last not in (None, namespace):
            self.records.clear()
        self.last = namespace
        return super().offer(namespace, key, make)


class MakesLater(Held):
    def __init__(self) -> None:
        super().__init__()
        self.queue: list[tuple[bytes, Callable[[], bytes]]] = []

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        self.queue.append((key, make))
        return self.is_open

    def flush(self, timeout_seconds: float) -> bool:
        while self.queue:
            key, make = self.queue.pop(0)
            self.records[key] = make()
        return True


class MakesTwice(Held):
    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        make()
        return super().offer(namespace, key, make)


class RefusesWhatItHolds(Held):
    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        return key not in self.records and super().offer(namespace, key, make)


class TakesChunksOnly(Held):
    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        return key != namespace.digest[:16] and super().offer(namespace, key, make)


class DropsAndSaysTrue(Held):
    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        make()
        return self.is_open


class SaysNone(Held):
    def flush(self, timeout_seconds: float) -> Any:
        """Returns nothing."""


class RaisesWithoutTime(Held):
    def flush(self, timeout_seconds: float) -> bool:
        if timeout_seconds <= 0:
            raise StoreUnavailable("no time")
        return True


class StatsInWords(Held):
    def stats(self) -> Any:
        return {"records": str(len(self.records))}


class LoadsAfterClose(Held):
    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        self.is_open, was_open = True, self.is_open
        found = super().load(namespace, keys)
        self.is_open = was_open
        return found


class RaisesAfterClose(Held):
    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        if not self.is_open:
            raise ValueError("I/O operation on closed file")
        return super().load(namespace, keys)


class TakesAfterClose(Held):
    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        super().offer(namespace, key, make)
        return True


@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        (RaisesForAMiss, {"a_miss_is_an_empty_list", GAP, APART}),
        (LoadsBackwards, EVERY_ROUND_TRIP),
        (LoadsAfterAGap, {GAP}),
        (LoadsWholePathsOnly, {WITHIN}),
        (OneNamespace, {APART}),
        (MakesLater, {MADE}),
        (MakesTwice, {MADE}),
        (RefusesWhatItHolds, {AGAIN}),
        (TakesChunksOnly, {NAMED}),
        (DropsAndSaysTrue, EVERY_ROUND_TRIP),
        (SaysNone, {*EVERY_ROUND_TRIP, MADE, FLUSH, STATS, CLOSED}),
        (RaisesWithoutTime, {FLUSH, CLOSED}),
        (StatsInWords, {STATS}),
        (LoadsAfterClose, {CLOSED}),
        (RaisesAfterClose, {CLOSED}),
        (TakesAfterClose, {CLOSED}),
        (Held, set()),
    ],
)
def test_the_checks_of_the_broken_rule_fail_and_no_others(broken: type[Held], failed: set[str]) -> None:
    class Suite(LowerTierContract):
        def make_tier(self) -> LowerTier:
            return broken()

    assert failed_checks(Suite) == failed
