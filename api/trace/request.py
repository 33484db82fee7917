"""Requests as paths of blocks, which every trace is read into; and the contract of a trace reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

BlockIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TraceRequest:
    """One request of a trace."""

    time_seconds: float
    """When it arrived, from any origin."""
    tenant: str
    blocks: BlockIds
    """Block ids in path order, int64 `[blocks]`. An id names a block together with all that is before it,
    over the whole trace: equal ids are equal prefixes."""
    prompt_tokens: int
    output_tokens: int = 0
    asked_from: int = 0
    """First block the cache was asked for; blocks before it were served elsewhere, and count as used only."""
    asked_to: int | None = None
    """End of the blocks asked for, None for all. The request itself made those after it, by generating."""


class TraceReader(Protocol):
    """One form of trace, read from one file."""

    @property
    def block_tokens(self) -> int:
        """Tokens per block."""

    def requests(self) -> Iterator[TraceRequest]:
        """Every request, in order of arrival.

        Raises:
            InputError: a line that is not of this form, by its number.
        """
