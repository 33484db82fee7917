"""Real traces, read once, and small ones made to measure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvtrie.api.trace import Trace, TraceRequest, gather, open_trace

DATA = Path(__file__).parents[4] / "shared" / "data"


@functools.cache
def _read(name: str) -> Trace:
    return open_trace(DATA / f"{name}.jsonl.gz")


@pytest.fixture
def real_trace() -> Callable[[str], Trace]:
    """A trace of `../shared/data` by name."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not there")
    return _read


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    """A trace of one request per path of block ids, a second apart, 4 tokens to a block."""

    def make(paths: Sequence[Sequence[int]], tenants: Sequence[str] | None = None) -> Trace:
        return gather(
            "made",
            4,
            [
                TraceRequest(
                    float(at),
                    "all" if tenants is None else tenants[at],
                    np.array(path, np.int64),
                    4 * len(path),
                )
                for at, path in enumerate(paths)
            ],
        )

    return make


@pytest.fixture
def random_paths() -> Callable[[int], list[list[int]]]:
    """Paths through a random forest, by seed: every block has one parent."""

    def make(seed: int) -> list[list[int]]:
        random = np.random.default_rng(seed)
        parent: dict[int, int] = {}
        ends = [-1]
        paths = []
        for _ in range(150):
            at, path = int(random.choice(ends[-20:] if random.random() < 0.5 else ends)), []
            while at >= 0:
                path.append(at)
                at = parent[at]
            path.reverse()
            for _ in range(int(random.integers(0, 6))):
                parent[len(parent)] = path[-1] if path else -1
                path.append(len(parent) - 1)
            ends += path[-3:]
            paths.append(path or [0])
            parent.setdefault(0, -1)
        return paths

    return make
