"""How many wrong keys an address may try, and what the log says."""

from __future__ import annotations

import logging

import pytest

from kvtrie.api.http.wrong_keys import AT_ONCE, MOST_ADDRESSES, WrongKeys


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(clock: Clock) -> WrongKeys:
    return WrongKeys(clock)


def guesses(keys: WrongKeys, address: str, number: int) -> int:
    """How many of `number` different wrong keys are looked at."""
    looked = 0
    for guess in range(number):
        if keys.may_try(address, f"Bearer guess-{guess}"):
            looked += 1
            keys.wrong(address)
    return looked


def test_an_address_tries_ten_at_once_and_one_a_second(keys: WrongKeys, clock: Clock) -> None:
    assert guesses(keys, "a", 100) == AT_ONCE
    assert guesses(keys, "b", 5) == 5, "another address has tries of its own"
    clock.now = 3.0
    assert guesses(keys, "a", 100) == 3
    clock.now = 1000.0
    assert guesses(keys, "a", 100) == AT_ONCE
    assert keys.total == 305


def test_a_key_that_was_right_from_there_is_not_shut_out(keys: WrongKeys) -> None:
    keys.right("a", "Bearer good")
    guesses(keys, "a", 100)
    assert keys.may_try("a", "Bearer good")
    assert not keys.may_try("a", "Bearer other"), "though it might be right, too"
    assert keys.may_try("b", "Bearer other")


def test_addresses_are_not_remembered_without_bound(keys: WrongKeys) -> None:
    for number in range(MOST_ADDRESSES + 100):
        keys.wrong(str(number))
    assert len(keys._addresses) == MOST_ADDRESSES


def test_the_log_names_the_address_and_is_bounded(
    keys: WrongKeys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        guesses(keys, "192.0.2.7", 1000)
        clock.now = 2.0
        keys.wrong("192.0.2.8")
    assert [record.getMessage() for record in caplog.records] == [
        "wrong API key from 192.0.2.7 refused (1 in all)",
        "wrong API key from 192.0.2.8 refused, and 999 more since the last line (1001 in all)",
    ]
    assert "guess" not in caplog.text
