"""Work that cannot be given a timeout is still waited for only so long."""

from __future__ import annotations

import threading

import pytest

from kvtrie.store.deadline import Deadline, run_within


def unwanted(result: object) -> None:
    raise AssertionError(f"discarded {result}")


def test_the_result_is_handed_over() -> None:
    assert run_within(Deadline.after(20.0), lambda: 5, unwanted) == 5


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own"), SystemExit(3)])
def test_an_error_is_handed_over(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_within(Deadline.after(20.0), fail, unwanted)
    assert caught.value is error


def test_a_result_that_comes_too_late_is_discarded() -> None:
    release, discarded = threading.Event(), threading.Event()
    results: list[str] = []

    def slow() -> str:
        release.wait(20.0)
        return "late"

    def discard(result: str) -> None:
        results.append(result)
        discarded.set()

    with pytest.raises(TimeoutError, match="deadline"):
        run_within(Deadline.after(0.05), slow, discard)
    release.set()
    assert discarded.wait(20.0)
    assert results == ["late"]


def test_a_deadline_in_the_past_has_nothing_remaining() -> None:
    with pytest.raises(TimeoutError):
        Deadline.after(-1.0).remaining_seconds()
    assert 0 < Deadline.after(50.0).remaining_seconds() <= 50.0
