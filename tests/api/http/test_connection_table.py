"""Whose connection makes way for whose, without sockets: the clock and the connections are the test's."""

from __future__ import annotations

import pytest

from kvtrie.api.http.connection_table import (
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
    Connection,
    ConnectionTable,
)
from kvtrie.api.http.record_frames import Limits

LIMITS = Limits(
    max_connections=6,
    spare_connections=2,
    max_unknown_per_address=3,
    max_connections_per_key=4,
    header_seconds=10.0,
)


class World:
    """A table, and what became of each connection."""

    def __init__(self) -> None:
        self.now = 0.0
        self.table = ConnectionTable(LIMITS, lambda: self.now)
        self.aborted: list[Connection] = []

    def connect(self, address: str = "a") -> Connection:
        self.now += 1e-3
        made: list[Connection] = []
        made.append(Connection(address, lambda: self.aborted.append(made[0]), lambda: False, self.now))
        self.table.add(made[0])
        return made[0]

    def ask(self, connection: Connection, caller: str | None = None) -> bool:
        """A request that is not answered yet; whether it is let in."""
        self.table.heard(connection)
        self.table.began(connection)
        return caller is None or self.table.identify(connection, caller)

    def known(self, caller: str, address: str = "a", busy: bool = False) -> Connection:
        connection = self.connect(address)
        assert self.ask(connection, caller)
        if not busy:
            self.table.ended(connection)
        return connection


@pytest.fixture
def world() -> World:
    return World()


class TestTooMany:
    def test_of_one_address_the_oldest_without_a_key_makes_way(self, world: World) -> None:
        silent = [world.connect() for _ in range(3)]
        other = world.connect("b")
        fourth = world.connect()
        assert world.aborted == silent[:1]
        assert not fourth.is_spare
        assert not other.is_spare
        assert len(world.table) == 4
        assert world.table.closed == {"too many of one address": 1}

    def test_a_known_caller_s_connections_are_not_its_address_s(self, world: World) -> None:
        """All engines of a host have one address."""
        known = [world.known("acme") for _ in range(4)]
        for _ in range(20):
            world.connect()
        assert not set(known) & set(world.aborted)
        assert len(world.table) <= LIMITS.max_connections

    def test_of_an_address_those_that_send_a_refused_body_make_way_too(self, world: World) -> None:
        """Nobody who has no key can take the places of those of the same address who have one."""
        slow = [world.connect() for _ in range(3)]
        for connection in slow:
            world.ask(connection)
        newcomer = world.connect()
        assert world.aborted == slow[:1]
        assert world.ask(newcomer, "acme")

    def test_in_all_the_unknown_make_way_first(self, world: World) -> None:
        known = [world.known("acme") for _ in range(3)]
        silent = [world.connect(address) for address in "bcd"]
        world.connect("e")
        assert world.aborted == silent[:1]
        assert not set(known) & set(world.aborted)

    def test_in_all_an_idle_one_of_whoever_has_most_is_next(self, world: World) -> None:
        alone = world.known("bolt")
        many = [world.known("acme") for _ in range(4)]
        other = world.known("crab")
        newcomer = world.connect("z")
        assert world.aborted == many[:1]
        assert not newcomer.is_spare
        assert alone not in world.aborted
        assert other not in world.aborted

    def test_where_each_has_a_request_under_way_further_ones_are_spare(self, world: World) -> None:
        busy = [world.known(caller, busy=True) for caller in ("acme", "acme", "acme", "bolt", "bolt", "bolt")]
        spare = [world.connect(str(number)) for number in range(4)]
        assert all(connection.is_spare for connection in spare)
        # Of the spare ones, too, the newest are kept: whoever asks /livez has only just connected.
        assert world.aborted == spare[:2]
        assert len(world.table) == 8
        world.table.ended(busy[0])
        world.table.remove(busy[0])
        world.ask(spare[2])
        assert not spare[2].is_spare, "there is room again"
        world.ask(spare[3])
        assert spare[3].is_spare

    def test_of_one_key_an_idle_one_of_it_makes_way_or_the_request_is_refused(self, world: World) -> None:
        busy = [world.known("acme", busy=True) for _ in range(3)]
        idle = world.known("acme")
        fifth = world.connect()
        assert world.ask(fifth, "acme")
        assert world.aborted == [idle]
        sixth = world.connect()
        assert not world.ask(sixth, "acme")
        assert world.ask(sixth, "bolt"), "it is no other caller's limit"
        assert not set(busy) & set(world.aborted)

    def test_nothing_is_counted_twice(self, world: World) -> None:
        for _ in range(50):
            connection = world.known("acme")
            assert world.ask(connection, "acme")
            world.table.ended(connection)
            world.table.remove(connection)
            world.table.remove(connection)
        assert len(world.table) == 0
        assert world.aborted == []


class TestSweep:
    def test_who_sends_nothing_or_not_all_of_a_head_is_closed(self, world: World) -> None:
        silent, trickling, asked = world.connect(), world.connect(), world.known("acme")
        world.now = 9.0
        world.table.heard(trickling)
        world.table.heard(asked)
        world.table.sweep()
        assert world.aborted == []
        world.now = 10.5
        world.table.heard(trickling)
        world.table.sweep()
        assert world.aborted == [silent], "the others' first byte came at 9 s"
        world.now = 19.5
        world.table.sweep()
        assert set(world.aborted) == {silent, trickling, asked}
        assert world.table.closed == {"no request": 3}

    def test_a_request_under_way_and_an_idle_connection_are_left_alone(self, world: World) -> None:
        busy, idle = world.known("acme", busy=True), world.known("acme")
        world.now = KEEP_ALIVE_SECONDS
        world.table.sweep()
        assert world.aborted == []
        world.now += 2 * LINGER_SECONDS
        world.table.sweep()
        assert world.aborted == [idle]
        assert busy.is_busy

    def test_a_last_reply_that_nobody_reads_is_cut_off(self, world: World) -> None:
        closing = Connection("a", lambda: world.aborted.append(closing), lambda: True, 0.0, is_busy=True)
        world.table.add(closing)
        world.table.sweep()
        world.now = LINGER_SECONDS - 1
        world.table.sweep()
        assert world.aborted == []
        world.now = LINGER_SECONDS + 1
        world.table.sweep()
        assert world.aborted == [closing]
