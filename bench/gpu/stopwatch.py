"""Timing one call on the device, with a cold L2 and without the host's gaps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

FLUSH_BYTES = 256 * 1024**2
"""Written between runs: four times an H200's L2."""
SLEEP_CYCLES_PER_SECOND = 2e9
"""About the SM clock; only bounds how long the device waits for the host to queue a call."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one call takes."""

    seconds: float
    """Median on the device."""
    fastest_seconds: float
    host_seconds: float
    """Median time the host needs to queue the call."""
    runs: int


class Stopwatch(Protocol):
    """Times calls."""

    def measure(self, call: Callable[[], object]) -> Timing:
        """Runs `call` several times."""


class CudaStopwatch:
    """CUDA events around each call. Before it the L2 is overwritten, and the device sleeps until all is queued."""

    def __init__(self, device: torch.device, seconds_per_call: float = 0.2) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        self._seconds_per_call = seconds_per_call

    def measure(self, call: Callable[[], object]) -> Timing:
        """See `Stopwatch.measure`."""
        host = []
        for _ in range(3):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call()
            host.append(time.perf_counter() - begun)
        torch.cuda.synchronize()
        host_seconds = median(host)
        sleep = int(min(0.02, 2 * host_seconds + 2e-4) * SLEEP_CYCLES_PER_SECOND)
        first = self._once(call, sleep)
        runs = max(7, min(50, int(self._seconds_per_call / (first + sleep / SLEEP_CYCLES_PER_SECOND))))
        times = [self._once(call, sleep) for _ in range(runs)]
        return Timing(median(times), min(times), host_seconds, runs)

    def _once(self, call: Callable[[], object], sleep: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        torch.cuda._sleep(sleep)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


class DryStopwatch:
    """For the dry run: calls once and reads the host's clock; the figure means nothing."""

    def measure(self, call: Callable[[], object]) -> Timing:
        """See `Stopwatch.measure`."""
        begun = time.perf_counter()
        call()
        seconds = time.perf_counter() - begun
        return Timing(seconds, seconds, seconds, 1)
