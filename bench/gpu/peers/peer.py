"""The protocol every peer keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.shapes import Shape

MOST_DIFFERENCE = 1e-2
"""Of a peer's output from ours, as |a - b| / |b|: bf16 rounding gives about 3e-3, 1 of 4096 keys 1.5e-2."""


class Unfit(Exception):
    """This peer cannot run this shape, and why: recorded as skipped."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The call of a peer that plans each step on the host."""

    run: Callable[[], Tensor]
    plan_seconds: float
    """Median host time of its plan, upload included."""

    def __call__(self) -> Tensor:
        return self.run()


class Peer(Protocol):
    """One way to compute the same attention."""

    name: str

    def absent(self, device: torch.device) -> str | None:
        """One line where it cannot run here at all, else None."""

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """Lays the case's data out as the peer wants it, untimed; returns the call to time.

        The call returns out `[requests * rows, q_heads, dim]`.

        Raises:
            Unfit: not this shape.
        """


def difference(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in fp64; infinite where shapes differ or something is not finite."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


def check_replicated_fits(shape: Shape, device: torch.device) -> None:
    """Whether a copy of its KV for every request fits the device.

    Raises:
        Unfit: it does not.
    """
    most = torch.cuda.get_device_properties(device).total_memory * 0.3 if device.type == "cuda" else 2**28
    if shape.replicated_bytes() > most:
        raise Unfit(f"replicated KV of {shape.replicated_bytes() / 1e9:.1f} GB does not fit")
