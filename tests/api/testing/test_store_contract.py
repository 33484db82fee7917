"""The suite for stores fails a store that breaks a rule, by the check of that rule."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import MemoryStore, Store
from kvtrie.store.contract import check_keys
from kvtrie.testing import StoreContract
from tests.api.testing.failed_checks import failed_checks

WALK = "any_sequence_of_calls_is_a_dicts"


class EmptyForAMiss(MemoryStore):
    def get_many(self, keys: Any) -> Any:
        return [value or b"" for value in super().get_many(keys)]


class InTheStoresOrder(MemoryStore):
    def get_many(self, keys: Any) -> Any:
        check_keys(keys)
        return super().get_many(sorted(keys))


class FirstValueStays(MemoryStore):
    def put_many(self, items: Any) -> None:
        check_keys(key for key, _ in items)
        for key, value in items:
            if super().get_many([key]) == [None]:
                super().put_many([(key, value)])


class NoKeysIsAnError(MemoryStore):
    def delete_many(self, keys: Any) -> int:
        if not keys:
            raise InputError("no keys")
        return super().delete_many(keys)


class CountsWhatWasAsked(MemoryStore):
    def delete_many(self, keys: Any) -> int:
        super().delete_many(keys)
        return len(keys)


class KeysAreLines(MemoryStore):
    """Reads keys back from a text file, so to speak."""

    def scan(self) -> Iterator[bytes]:
        return iter(b"\n".join(super().scan()).splitlines())


class DeletesByPrefix(MemoryStore):
    def delete_many(self, keys: Any) -> int:
        check_keys(keys)
        return super().delete_many([held for held in self.scan() if held.startswith(tuple(keys))])


class TakesAnyKey(MemoryStore):
    def _sound(self, keys: Any) -> list[bytes]:
        return [key for key in keys if isinstance(key, bytes) and 0 < len(key) <= 64]

    def get_many(self, keys: Any) -> Any:
        return super().get_many(self._sound(keys))


class StoresBeforeItLooksAtAllKeys(MemoryStore):
    def put_many(self, items: Any) -> None:
        for item in items:
            super().put_many([item])


class CutsLongValues(MemoryStore):
    def put_many(self, items: Any) -> None:
        super().put_many([(key, bytes(value[:1_000_000])) for key, value in items])


class GivesViews(MemoryStore):
    def get_many(self, keys: Any) -> Any:
        return [None if value is None else memoryview(value) for value in super().get_many(keys)]


class ScansOnePage(MemoryStore):
    def scan(self) -> Iterator[bytes]:
        return islice(super().scan(), 1000)


class KeepsTheView(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self._views: dict[bytes, Any] = {}

    def put_many(self, items: Any) -> None:
        super().put_many(items)
        self._views.update((key, value) for key, value in items if isinstance(value, memoryview))

    def get_many(self, keys: Any) -> Any:
        found = super().get_many(keys)
        return [bytes(self._views[key]) if key in self._views else value for key, value in zip(keys, found)]


class StaysOpen(MemoryStore):
    def close(self) -> None:
        """Nothing."""


class ClosesOnce(MemoryStore):
    is_closed = False

    def close(self) -> None:
        super().close()
        if self.is_closed:
            raise InputError("closed already")
        self.is_closed = True


class OneBufferForAllThreads(MemoryStore):
    _asked: Any = ()

    def get_many(self, keys: Any) -> Any:
        self._asked = keys
        time.sleep(0.001)
        return super().get_many(self._asked)


class DeletedKeysComeBack(MemoryStore):
    """A key that is put after it was deleted twice has another value: only longer sequences show it."""

    def __init__(self) -> None:
        super().__init__()
        self._deleted: dict[bytes, int] = {}

    def delete_many(self, keys: Any) -> int:
        check_keys(keys)
        for key in set(keys):
            self._deleted[key] = self._deleted.get(key, 0) + 1
        return super().delete_many(keys)

    def put_many(self, items: Any) -> None:
        check_keys(key for key, _ in items)
        super().put_many([(key, b"old" if self._deleted.get(key, 0) > 1 else value) for key, value in items])


@pytest.mark.parametrize(
    ("broken", "failed"),
    [
        (
            EmptyForAMiss,
            {
                "a_miss_is_none",
                "values_come_back_in_the_order_of_the_keys",
                "delete_counts_the_keys_that_were_held",
                "a_prefix_of_a_key_is_another_key",
                "other_keys_are_refused_before_anything_is_stored",
                "values_are_any_bytes_of_any_size",
                WALK,
            },
        ),
        (
            InTheStoresOrder,
            {"values_come_back_in_the_order_of_the_keys", "values_are_any_bytes_of_any_size", WALK},
        ),
        (FirstValueStays, {"the_later_value_stays", "threads_get_their_own_answers", WALK}),
        (NoKeysIsAnError, {"no_keys_change_nothing", WALK}),
        (CountsWhatWasAsked, {"delete_counts_the_keys_that_were_held", WALK}),
        (KeysAreLines, {"any_1_to_64_bytes_are_a_key", WALK}),
        (DeletesByPrefix, {"a_prefix_of_a_key_is_another_key", WALK}),
        (TakesAnyKey, {"other_keys_are_refused_before_anything_is_stored"}),
        (StoresBeforeItLooksAtAllKeys, {"other_keys_are_refused_before_anything_is_stored"}),
        (CutsLongValues, {"values_are_any_bytes_of_any_size"}),
        (GivesViews, {"values_are_any_bytes_of_any_size"}),
        (ScansOnePage, {"scan_yields_every_key"}),
        (KeepsTheView, {"a_view_is_stored_as_bytes"}),
        (StaysOpen, {"a_closed_store_is_unavailable"}),
        (ClosesOnce, {"a_closed_store_is_unavailable"}),
        (OneBufferForAllThreads, {"threads_get_their_own_answers"}),
        (DeletedKeysComeBack, {WALK}),
        (MemoryStore, set()),
    ],
)
def test_the_checks_of_the_broken_rule_fail_and_no_others(
    broken: type[MemoryStore], failed: set[str]
) -> None:
    class Suite(StoreContract):
        def make_store(self) -> Store:
            return broken()

    assert failed_checks(Suite) == failed


def test_a_suite_that_makes_nothing_says_what_to_override() -> None:
    with pytest.raises(NotImplementedError, match="StoreContract must override make_store"):
        StoreContract().test_a_miss_is_none()
