"""A lower tier that is killed, hung, full or lying: every request completes, the same, and within a deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from kvtrie.api import EngineConfig, LowerTier, PrefixCachedModel
from kvtrie.api.tiers.sidecar_tier import SidecarTier
from kvtrie.api.tiers.store_tier import StoreTier
from kvtrie.prefix_tree import Namespace
from kvtrie.store.redis_store import RedisStore
from tests.api.balance import CHUNK, assert_same, complete, greedy, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tiny_models import prompts

DEADLINE = 0.4
"""Of one call to the tier."""
ROWS = prompts([43, 37, 45, 29], shared=3 * CHUNK)
NEW = 12
BACK_SECONDS = 30.0


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return small_model()


class Server:
    """A Redis or a sidecar: a process of its own that can be killed, stopped and started again."""

    def __init__(
        self,
        tier: Callable[[], LowerTier],
        kill: Callable[[], None],
        stop: Callable[[], None],
        cont: Callable[[], None],
        restart: Callable[[], None],
    ) -> None:
        self.tier, self.kill, self.stop, self.cont, self.restart = tier, kill, stop, cont, restart


@pytest.fixture(params=["redis", "http", "unix"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "redis":
        redis = request.getfixturevalue("start_redis")()
        yield Server(
            lambda: StoreTier(
                RedisStore(
                    redis.url,
                    deadline_seconds=DEADLINE,
                    retry_after_seconds=0.1,
                    longest_retry_seconds=0.4,
                )
            ),
            redis.kill,
            redis.stop,
            redis.cont,
            redis.restart,
        )
        return
    sidecar = request.getfixturevalue("start_sidecar")(memory="4MiB", chunk_tokens=CHUNK)
    url = sidecar.url if request.param == "http" else sidecar.unix_url
    yield Server(
        lambda: SidecarTier(url, deadline_seconds=DEADLINE),
        sidecar.kill,
        lambda: sidecar.signal(SIGSTOP),
        lambda: sidecar.signal(SIGCONT),
        sidecar.start,
    )


class Watched:
    """A tier that does something before its next load."""

    def __init__(self, tier: LowerTier) -> None:
        self._tier = tier
        self.loads = 0
        self.before_load: Callable[[], None] | None = None

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes]:
        self.loads += 1
        before, self.before_load = self.before_load, None
        if before is not None:
            before()
        return self._tier.load(namespace, keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tier, name)


@contextmanager
def within_the_deadline(calls: int) -> Iterator[None]:
    """No measure of speed: five times what that many hung calls may take, and slack for a busy machine."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 5 * DEADLINE * calls + 10.0


def fill(model: PreTrainedModel, tier: LowerTier) -> None:
    with wrapped(model, store=tier) as cached:
        complete(cached, *ROWS, new=1)
        assert cached.flush(20.0)


def assert_served(cached: PrefixCachedModel, rows: Sequence[list[int]] = ROWS, **options: Any) -> None:
    for completion in complete(cached, *rows, new=NEW, **options):
        assert_same(cached.model, completion)


def assert_reuse_resumes(cached: PrefixCachedModel) -> None:
    """After the breaker's pause, loads bring chunks again; every request on the way is served."""
    end = time.monotonic() + BACK_SECONDS
    loaded = cached.stats().get("loaded_chunks", 0)
    while cached.stats().get("loaded_chunks", 0) == loaded:
        assert time.monotonic() < end, "reuse does not resume"
        time.sleep(0.05)
        forget(cached)
        assert_served(cached, ROWS[:1])
        cached.flush(0.5)


def forget(cached: PrefixCachedModel) -> None:
    """Empties the device, so that the lower tier is asked."""
    memory = cached.engine.memory
    held = memory.take("tenant:default", memory.pool.slots)
    assert held is not None
    memory.give("tenant:default", held)


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_between_steps(model: PreTrainedModel, server: Server, fault: str) -> None:
    fill(model, server.tier())
    with wrapped(model, store=server.tier(), engine=EngineConfig(step_tokens=2 * CHUNK)) as cached:
        with within_the_deadline(calls=len(ROWS)):
            completions = [cached.submit(row, max_new_tokens=NEW, eos=()) for row in ROWS[:2]]
            cached.engine.step()
            getattr(server, fault)()
            others = prompts([50, 33], shared=16, seed=5)
            completions += [cached.submit(row, max_new_tokens=NEW, eos=()) for row in (*ROWS[2:], *others)]
            cached.engine.run()
        assert completions[0].cached_tokens == 5 * CHUNK, "it was there before"
        for completion in completions:
            assert_same(model, completion)
        server.restart() if fault == "kill" else server.cont()
        assert_reuse_resumes(cached)


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_during_a_load(model: PreTrainedModel, server: Server, fault: str) -> None:
    fill(model, server.tier())
    tier = Watched(server.tier())
    with wrapped(model, store=tier) as cached:
        tier.before_load = getattr(server, fault)
        with within_the_deadline(calls=len(ROWS)):
            assert_served(cached)
        assert cached.stats()["lower_outages"] >= 1
        assert cached.stats().get("loaded_chunks", 0) == 0
        with within_the_deadline(calls=len(ROWS)):
            for row in prompts([30, 31, 32], seed=6):
                expected = greedy(model, row, 3)
                found = cached.generate(torch.tensor([row]), max_new_tokens=3, eos_token_id=None)
                assert found[0, len(row) :].tolist() == expected
        server.restart() if fault == "kill" else server.cont()
        assert_reuse_resumes(cached)


def test_not_there_at_first(model: PreTrainedModel, server: Server) -> None:
    server.kill()
    with wrapped(model, store=server.tier()) as cached:
        with within_the_deadline(calls=len(ROWS)):
            assert_served(cached)
        server.restart()
        assert_reuse_resumes(cached)


def test_closing_over_a_hung_tier(model: PreTrainedModel, server: Server) -> None:
    with within_the_deadline(calls=len(ROWS) + 2), wrapped(model, store=server.tier()) as cached:
        server.stop()
        assert_served(cached)
    server.cont()


def test_a_full_redis(model: PreTrainedModel, start_redis: Callable[..., Any]) -> None:
    redis = start_redis("--maxmemory", "1200kb", "--maxmemory-policy", "noeviction")
    with wrapped(model, chunks=64, store=redis.url) as cached:
        for seed in range(40):
            assert_served(cached, prompts([61, 40], shared=30, seed=seed))
            cached.flush(2.0)
            lower = cached.stats()["lower"]
            if lower["dropped_error"] and lower["dropped_paused"]:
                break
        assert cached.stats()["lower"]["dropped_error"] > 0, "it never was full"
        forget(cached)
        assert_served(cached, prompts([61, 40], shared=30, seed=0))


def test_a_full_sidecar(model: PreTrainedModel, start_sidecar: Callable[..., Any]) -> None:
    """It evicts; nobody fails."""
    sidecar = start_sidecar(memory="1MiB", chunk_tokens=CHUNK)
    last = 35
    with wrapped(model, store=sidecar.url) as cached:
        for seed in range(last + 1):
            assert_served(cached, prompts([400], seed=seed))
            assert cached.flush(10.0)
            forget(cached)
        assert cached.stats()["lower"]["written_bytes"] > 1 << 20, "more than it holds"
        assert_served(cached, prompts([400], seed=last))
        assert cached.stats()["loaded_chunks"] > 0


GARBAGE = [
    b"",
    b"\r\n\r\n",
    b"+OK\r\n" * 50,
    b"*10000000\r\n",
    b"$9\r\nnot a rec\r\n" * 50,
    b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff",
    b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhalf",
    bytes(range(256)) * 20,
]


@pytest.mark.parametrize("kind", ["redis", "sidecar"])
@pytest.mark.parametrize("said", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage(
    model: PreTrainedModel,
    answering: Callable[[Callable[[socket.socket], None]], str],
    kind: str,
    said: bytes,
) -> None:
    def treat(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            connection.sendall(said)

    url = answering(treat)
    tier: LowerTier = (
        StoreTier(RedisStore(url.replace("http://", "redis://"), deadline_seconds=DEADLINE))
        if kind == "redis"
        else SidecarTier(url, deadline_seconds=DEADLINE)
    )
    with within_the_deadline(calls=len(ROWS) + 2), wrapped(model, store=tier) as cached:
        assert_served(cached)
        assert_served(cached, tenant="acme")
        assert cached.stats().get("loaded_chunks", 0) == 0


def test_a_tier_that_trickles(
    model: PreTrainedModel, answering: Callable[[Callable[[socket.socket], None]], str]
) -> None:
    """One byte at a time never times out a read; the deadline is over the whole call."""

    def treat(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(1000):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    url = answering(treat)
    for tier in (
        SidecarTier(url, deadline_seconds=DEADLINE),
        StoreTier(RedisStore(url.replace("http://", "redis://"), deadline_seconds=DEADLINE)),
    ):
        with within_the_deadline(calls=len(ROWS) + 2), wrapped(model, store=tier) as cached:
            assert_served(cached)
