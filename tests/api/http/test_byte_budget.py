"""What unfinished bodies may take: together, and of one caller."""

from __future__ import annotations

import anyio
import pytest

from kvtrie.api.http import byte_budget
from kvtrie.api.http.byte_budget import BudgetExceeded, ByteBudget


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_budget, "WAIT_SECONDS", 0.0)


def test_a_caller_may_hold_half_of_what_the_others_leave() -> None:
    async def go() -> None:
        budget = ByteBudget(120)
        with budget.charge("a") as first, budget.charge("b") as second, budget.charge("a") as third:
            await first.grow(40)
            await third.grow(20)
            with pytest.raises(BudgetExceeded):
                await third.grow(1)
            assert budget.room_for("b") == 30
            await second.grow(30)
            with pytest.raises(BudgetExceeded):
                await second.grow(1)
            first.shrink_to(0)
            assert budget.room_for("a") == 25
            assert budget.room_for("b") == 20
            assert budget.used_bytes == 50
        assert budget.used_bytes == 0
        assert budget.room_for("a") == budget.longest_bytes == 60

    anyio.run(go)


def test_what_is_refused_takes_nothing_and_an_error_gives_all_back() -> None:
    async def go() -> None:
        budget = ByteBudget(100)
        with budget.charge("a") as charge:
            await charge.grow(50)
            with pytest.raises(BudgetExceeded):
                await charge.grow(1)
            assert budget.used_bytes == 50
        assert budget.used_bytes == 0

    anyio.run(go)


def test_a_body_waits_for_one_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_budget, "WAIT_SECONDS", 60.0)

    async def go() -> None:
        budget = ByteBudget(100)
        order: list[str] = []

        async def wait() -> None:
            with budget.charge("a") as charge:
                await charge.grow(30)
                order.append("waited")

        async with anyio.create_task_group() as tasks:
            with budget.charge("a") as charge:
                await charge.grow(50)
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                charge.shrink_to(30)
                await anyio.wait_all_tasks_blocked()
                order.append("ended")
        assert order == ["ended", "waited"]

    anyio.run(go)


def test_bytes_add_up_however_bodies_come_and_go() -> None:
    async def go() -> None:
        budget = ByteBudget(1000)
        for number in range(200):
            with budget.charge(str(number % 7)) as charge:
                await charge.grow(number)
                charge.shrink_to(number // 2)
                assert budget.used_bytes == number // 2
        assert budget.used_bytes == 0
        assert all(budget.room_for(str(number)) == 500 for number in range(7))

    anyio.run(go)
