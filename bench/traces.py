"""The dev traces of `../shared/data`, for benchmarks."""

from __future__ import annotations

from pathlib import Path

from kvtrie.api.trace import Trace, open_trace

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DEV_TRACES = (
    "mooncake_conversation_dev",
    "mooncake_synthetic_dev",
    "mooncake_toolagent_mix_dev",
    "kvct_agent_dev",
)


def read_trace(name: str) -> Trace:
    """A dev trace by name, or any trace by its path.

    Raises:
        InputError: there is none.
    """
    return open_trace(DATA / f"{name}.jsonl.gz" if name in DEV_TRACES else Path(name))
