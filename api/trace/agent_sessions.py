"""Agent sessions: one session a line, its requests as runs of block ids that are local to the session.

    {"id", "block_size", "requests": [{"t": seconds, "in": tokens, "runs": [[first id, length], ...]}, ...]}

The file does not say when sessions started. To make one stream of them, session s (in file order) starts at
`random.Random(7).uniform(0, 28800)` seconds, one draw each; requests are ordered by (time, session, place).
A session is a tenant: its ids are shared with no other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvtrie.api.trace.json_lines import count_field, json_lines, number_field, text_field, wrong
from kvtrie.api.trace.request import BlockIds, TraceRequest
from kvtrie.prefix_tree.errors import InputError

SEED = 7
SPREAD_SECONDS = 28800.0
"""Sessions start within this time."""
_LOCAL_BITS = 32
_MAX_BLOCKS = 1 << 24
"""Most blocks of one request: a longer run is a damaged file, and would be a very large array."""


class AgentSessions:
    """See `TraceReader`.

    Raises:
        InputError: the first session has no usable `block_size`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        first = next(json_lines(path), None)
        if first is None:
            raise InputError(f"trace {path} is empty")
        self._block_tokens = count_field(first[1], "block_size", path, first[0], 1)

    @property
    def block_tokens(self) -> int:
        """See `TraceReader.block_tokens`."""
        return self._block_tokens

    @staticmethod
    def is_form(said: dict[str, Any]) -> bool:
        """Whether a trace's first object looks like this form."""
        return "block_size" in said and "requests" in said

    def requests(self) -> Iterator[TraceRequest]:
        """See `TraceReader.requests`."""
        starts = random.Random(SEED)
        events: list[tuple[float, int, int, TraceRequest]] = []
        for session, (number, said) in enumerate(json_lines(self._path)):
            start = starts.uniform(0, SPREAD_SECONDS)
            tenant = text_field(said, "id", self._path, number)
            if count_field(said, "block_size", self._path, number, 1) != self._block_tokens:
                raise wrong(
                    self._path, number, f"has other blocks than the {self._block_tokens} of the first"
                )
            asked = said.get("requests")
            if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
                raise wrong(self._path, number, "needs 'requests', a list of objects")
            for place, one in enumerate(asked):
                time_seconds = start + number_field(one, "t", self._path, number)
                request = TraceRequest(
                    time_seconds,
                    tenant,
                    self._blocks(one, number) + (session << _LOCAL_BITS),
                    count_field(one, "in", self._path, number),
                )
                events.append((time_seconds, session, place, request))
        events.sort(key=lambda event: event[:3])
        for event in events:
            yield event[3]

    def _blocks(self, one: dict[str, Any], number: int) -> BlockIds:
        runs = one.get("runs")
        problem = "needs 'runs', a list of [first id, length]"
        if not isinstance(runs, list):
            raise wrong(self._path, number, problem)
        total = 0
        for run in runs:
            if not (
                isinstance(run, list)
                and len(run) == 2
                and all(type(part) is int and 0 <= part < 1 << (_LOCAL_BITS - 1) for part in run)
            ):
                raise wrong(self._path, number, problem)
            total += run[1]
            if total > _MAX_BLOCKS:
                raise wrong(self._path, number, f"has a request of more than {_MAX_BLOCKS} blocks")
        parts = [np.arange(first, first + length, dtype=np.int64) for first, length in runs]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
