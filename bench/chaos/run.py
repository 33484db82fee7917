"""Eight clients at once, one of them in the main thread under real SIGINTs, and what is held afterwards."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from unittest import mock

import torch

from bench.chaos.actions import PIN_SECONDS, TENANTS, Client, WrongTokens
from bench.chaos.faults import FaultyPass, FaultyTier
from bench.chaos.plain import Plain
from kvtrie.api import EngineConfig, PrefixCachedModel
from kvtrie.api.models.model_facts import model_facts

CHUNK_TOKENS = 8
HANG_SECONDS = 90.0
_FIGURES = ("cached_tokens", "evictions", "loaded_chunks", "lower_outages", "preemptions")

_WARM_UP = 0.3
"""Part of the requests before memory is watched: arenas of the allocator, caches of torch."""


@dataclass(slots=True)
class Report:
    """What a run came to."""

    requests: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Results that are not the plain model's."""
    unexpected: list[str] = field(default_factory=list)
    """Errors that no disturbance explains."""
    unbalanced: list[str] = field(default_factory=list)
    """What is still held at the end."""
    interrupts: int = 0
    """SIGINTs that raised in the main thread."""
    rss_slope: float = 0.0
    """Resident memory's growth, bytes per 1,000 requests, after the warm-up."""
    rss_bytes: list[int] = field(default_factory=list)
    """Resident memory after each tenth of the run: a slope alone does not tell growth from one jump."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_good(self) -> bool:
        """Nothing wrong, unexpected or left over."""
        return not (self.wrong or self.unexpected or self.unbalanced)


class _Interrupts:
    """SIGINT's handler: raises while the main thread's client is at it, and only then."""

    def __init__(self) -> None:
        self.is_inside = False
        self.raised = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_inside:
            self.is_inside = False
            self.raised += 1
            raise KeyboardInterrupt


class Chaos:
    """One run.

    Args:
        requests: at least so many.
        threads: clients, the main thread's included.
        chunks: size of the pool.
        seed: of everything but the threads' timing.
        interrupt_every: mean seconds between SIGINTs; 0 for none.
    """

    def __init__(
        self, requests: int, threads: int = 8, chunks: int = 44, seed: int = 0, interrupt_every: float = 0.05
    ) -> None:
        self._requests = requests
        self._seed = seed
        self._chunks = chunks
        self._interrupt_every = interrupt_every
        self._interrupts = _Interrupts()
        self._plain = Plain(seed)
        self._pass, self._tier = FaultyPass(seed), FaultyTier(seed)
        self._threads = threads
        self._lock = threading.Lock()
        self._begun_at: dict[int, float] = {}
        self._resident: list[tuple[int, int]] = []
        self._clients: list[Client] = []
        self.report = Report()

    def run(self) -> Report:
        """Runs it. A hang ends the process, with every thread's stack on stderr and exit status 3."""
        model = self._plain.model
        hook = model.model.norm.register_forward_pre_hook(self._pass)
        before = signal.signal(signal.SIGINT, self._interrupts)
        memory = self._chunks * model_facts(model).chunk_shape(CHUNK_TOKENS).chunk_bytes
        try:
            with (
                mock.patch.dict(os.environ, KVTRIE_CHECK="1"),
                PrefixCachedModel(
                    model,
                    memory=memory,
                    chunk_tokens=CHUNK_TOKENS,
                    store=self._tier,
                    shared={"tools": TENANTS[:2]},
                    pin_budget=memory // 8,
                    engine=EngineConfig(step_tokens=24, max_running=12),
                ) as cached,
            ):
                self._share(cached)
                self._clients = [Client(cached, self._plain, self._seed + n) for n in range(self._threads)]
                self._pass.is_armed = self._tier.is_armed = True
                began = time.monotonic()
                self._serve()
                self.report.seconds = time.monotonic() - began
                self._pass.is_armed = self._tier.is_armed = False
                self._settle(cached)
                self.report.counts += Counter(
                    {f"engine: {name}": cached.stats().get(name, 0) for name in _FIGURES}
                )
        finally:
            signal.signal(signal.SIGINT, before)
            hook.remove()
        report = self.report
        report.interrupts = self._interrupts.raised
        report.rss_slope = _slope(self._resident)
        if samples := len(self._resident):
            report.rss_bytes = [self._resident[max(0, samples * n // 10 - 1)][1] for n in range(1, 11)]
        for client in self._clients:
            report.counts += client.counts
        return report

    def _share(self, cached: PrefixCachedModel) -> None:
        """Puts some prompts into the shared scope, for tenants to go on from."""
        for prompt in self._plain.prompts[::5]:
            cached.warm(prompt, scope="tools")

    # ---- while it runs

    def _serve(self) -> None:
        done = threading.Event()
        others = [
            threading.Thread(target=self._client, args=(number,), name=f"client {number}", daemon=True)
            for number in range(1, self._threads)
        ]
        watching = [threading.Thread(target=self._watch, args=(done,), daemon=True)]
        if self._interrupt_every:
            watching.append(threading.Thread(target=self._interrupt, args=(done,), daemon=True))
        for thread in (*watching, *others):
            thread.start()
        self._client(0)
        for thread in others:
            thread.join()
        done.set()
        for thread in watching:
            thread.join()

    def _client(self, number: int) -> None:
        client = self._clients[number]
        while self.report.requests < self._requests:
            self._begun_at[number] = time.monotonic()
            requests, error = 1, None
            try:
                self._interrupts.is_inside = self._interrupts.is_inside or number == 0
                requests = client.act()
                if number == 0:
                    self._interrupts.is_inside = False
            except BaseException as raised:
                error = raised
            self._note(client, requests, error)
        del self._begun_at[number]

    def _note(self, client: Client, requests: int, error: BaseException | None) -> None:
        with self._lock:
            report = self.report
            report.requests += requests
            if isinstance(error, KeyboardInterrupt):
                report.counts[f"SIGINT in {client.doing}"] += 1
            elif isinstance(error, WrongTokens):
                report.wrong.append(str(error))
            elif error is not None:
                report.unexpected.append(f"{client.doing}: " + "".join(traceback.format_exception(error)))
            if report.requests // 100 != (report.requests - requests) // 100:
                self._resident.append((report.requests, _resident_bytes()))

    def _interrupt(self, done: threading.Event) -> None:
        chance = random.Random(self._seed)
        while not done.wait(chance.expovariate(1 / self._interrupt_every)):
            os.kill(os.getpid(), signal.SIGINT)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(1.0):
            late = [
                number
                for number, begun in list(self._begun_at.items())
                if time.monotonic() - begun > HANG_SECONDS
            ]
            if late:
                doing = {number: self._clients[number].doing for number in late}
                print(f"hang: after {self.report.requests} requests, clients at {doing}", file=sys.stderr)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(3)

    # ---- afterwards

    def _settle(self, cached: PrefixCachedModel) -> None:
        """Lets what interrupts left under way come to its end, and looks at what is held then."""
        gc.collect()
        cached.engine.cancel_all()
        cached.engine.step()
        # Pins whose owner was interrupted have their time.
        time.sleep(2 * PIN_SECONDS)
        memory = cached.engine.memory
        memory.tree.expire_pins()
        device = memory.tree.tiers[0]
        pending = [node for node in memory.tree.walk() if not node.is_resident]
        left = {
            "requests under way": 0 if cached.engine.idle else 1,
            "leases": len(memory.tree.leases),
            "pins": len(memory.tree.pins),
            "claimed chunks": len(pending),
            "pending bytes": device.pending_bytes,
            "bytes unaccounted for": device.capacity_bytes
            - device.used_bytes
            - device.pending_bytes
            - device.free_bytes,
            "slots in use that hold no chunk": memory.pool.slots
            - memory.pool.free_slots.free
            - device.chunks,
        }
        self.report.unbalanced += [f"{count} {name}" for name, count in left.items() if count]
        try:
            cached.check()
        except AssertionError as error:
            self.report.unbalanced.append(f"check: {error!r}")
        if not all(torch.isfinite(part).all() for part in (memory.pool.k, memory.pool.v)):
            self.report.unbalanced.append("a slot that is not finite")
        # And it still serves.
        for place, prompt in enumerate(self._plain.prompts):
            completion = cached.submit(prompt, tenant=TENANTS[0], max_new_tokens=4, eos=())
            cached.engine.run()
            if completion.tokens != self._plain.greedy[place][:4]:
                self.report.wrong.append(f"afterwards: {prompt}: {completion.tokens}, {completion.error!r}")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _slope(resident: list[tuple[int, int]]) -> float:
    """Of a straight line through the samples after the warm-up, bytes per 1,000 requests."""
    kept = resident[int(_WARM_UP * len(resident)) :]
    if len(kept) < 3:
        return 0.0
    requests, size = (torch.tensor(column, dtype=torch.float64) for column in zip(*kept))
    off = requests - requests.mean()
    return 1000.0 * float((off * (size - size.mean())).sum() / off.square().sum())
