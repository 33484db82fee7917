"""Sends a plan's requests when they are due, and waits for all answers."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvtrie.api.load.client import LoadClient
from kvtrie.api.load.outcome import LoadRun, Outcome
from kvtrie.api.load.plan import LoadPlan
from kvtrie.api.load.target import Target
from kvtrie.prefix_tree.errors import InputError

_BEAT_SECONDS = 0.02
"""How often the event loop's delay is sampled."""
_PROGRESS_BEATS = 10
"""Beats between two calls of `progress`."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of the client."""

    max_connections: int = 256
    """Connections that are open at a time. A request that is due while all are in use waits, and that counts."""
    timeout_seconds: float = 600.0
    """Longest time from sending a request to its last event."""

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise InputError(f"--max-connections must be at least 1, got {self.max_connections}")
        if not self.timeout_seconds > 0:
            raise InputError(f"--timeout must be above 0, got {self.timeout_seconds:g}")


@dataclass(slots=True)
class LoadState:
    """Where a run is now."""

    planned: int
    begun: int = 0
    """Requests that were due."""
    ended: int = 0
    failed: int = 0
    seconds: float = 0.0


Progress = Callable[[LoadState], None]


async def run_load(
    plan: LoadPlan,
    target: Target,
    model: str,
    limits: ClientLimits | None = None,
    progress: Progress | None = None,
) -> LoadRun:
    """Runs a plan against a server.

    In the main thread an interrupt (SIGINT) ends the run early: what has been measured is returned.

    Args:
        progress: called a few times a second.
    """
    limits = limits or ClientLimits()
    # Making a client reads certificates, which takes time: the run starts after it.
    async with target.client(limits.max_connections) as http:
        cpu = time.process_time()
        run = _Run(plan, progress)
        client = LoadClient(
            http,
            target,
            plan.form,
            model,
            clock=run.now,
            max_connections=limits.max_connections,
            timeout_seconds=limits.timeout_seconds,
        )
        work = asyncio.ensure_future(run.open(client) if plan.offsets is not None else run.closed(client))
        beat = asyncio.ensure_future(run.beat())
        try:
            with _interrupts(work):
                await asyncio.wait([work])
        finally:
            await _cancelled([work, beat])
        if not work.cancelled():
            work.result()
        return LoadRun(
            outcomes=sorted(run.outcomes, key=lambda outcome: outcome.index),
            planned=len(plan.prompts),
            seconds=max((outcome.ended for outcome in run.outcomes), default=0.0),
            cpu_seconds=time.process_time() - cpu,
            loop_delays=run.delays,
            waited_for_connection=client.waited_for_connection,
            was_interrupted=work.cancelled(),
        )


class _Run:
    """One run's state."""

    def __init__(self, plan: LoadPlan, progress: Progress | None) -> None:
        self.outcomes: list[Outcome] = []
        self.delays: list[float] = []
        self._plan, self._progress = plan, progress
        self._state = LoadState(len(plan.prompts))
        self._loop_time = asyncio.get_running_loop().time
        self._start = self._loop_time()

    def now(self) -> float:
        """Seconds since the start."""
        return self._loop_time() - self._start

    async def open(self, client: LoadClient) -> None:
        """Each request at its time, whatever became of those before it."""
        assert self._plan.offsets is not None
        running: set[asyncio.Task[None]] = set()
        raised: list[asyncio.Task[None]] = []

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            # A failed request is an outcome: what a task raises is a fault of this client.
            if not task.cancelled() and task.exception() is not None:
                raised.append(task)

        try:
            for index, (offset, prompt) in enumerate(zip(self._plan.offsets, self._plan.prompts)):
                content = client.content(prompt)
                # Also where it is late already: answers must be read in between.
                await asyncio.sleep(max(0.0, offset - self.now()))
                if raised:
                    break
                task = asyncio.ensure_future(self._one(client, index, content, offset))
                running.add(task)
                task.add_done_callback(ended)
            while running and not raised:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if raised:
                raised[0].result()
        finally:
            await _cancelled(list(running))

    async def closed(self, client: LoadClient) -> None:
        """`concurrency` workers, each with one request at a time."""
        assert self._plan.concurrency is not None
        waiting = iter(_in_order(self._plan))

        async def work() -> None:
            for indices in waiting:
                for index in indices:
                    await self._one(client, index, client.content(self._plan.prompts[index]), None)

        workers = [asyncio.ensure_future(work()) for _ in range(self._plan.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            await _cancelled(workers)

    async def beat(self) -> None:
        """Samples how late the event loop runs, and shows progress."""
        beats = 0
        while True:
            asked = self.now() + _BEAT_SECONDS
            await asyncio.sleep(_BEAT_SECONDS)
            self.delays.append(max(0.0, self.now() - asked))
            beats += 1
            if self._progress is not None and beats % _PROGRESS_BEATS == 0:
                self._state.seconds = self.now()
                self._progress(self._state)

    async def _one(self, client: LoadClient, index: int, content: bytes, due: float | None) -> None:
        self._state.begun += 1
        outcome = await client.send(index, self._plan.prompts[index], content, due)
        self.outcomes.append(outcome)
        self._state.ended += 1
        self._state.failed += outcome.failure is not None


def _in_order(plan: LoadPlan) -> list[list[int]]:
    """Indices of requests that one worker sends one after the other: the turns of a chat, or one request."""
    found: list[list[int]] = []
    chats: dict[int, list[int]] = {}
    for index, prompt in enumerate(plan.prompts):
        if prompt.chat is not None and prompt.chat in chats:
            chats[prompt.chat].append(index)
            continue
        found.append([index])
        if prompt.chat is not None:
            chats[prompt.chat] = found[-1]
    return found


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _interrupts(work: asyncio.Future[None]) -> Iterator[None]:
    """SIGINT cancels `work`; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, work.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
