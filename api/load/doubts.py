"""Reasons to doubt a run's figures: mostly that this client was the bottleneck, and not the server."""

from __future__ import annotations

from kvtrie.api.load.measures import Measures, spread
from kvtrie.api.load.outcome import LoadRun

LATE_SECONDS = 0.01
"""A client that is later than this would be seen in the figures of a fast server."""
_PART_OF_TTFT = 0.1
_BUSY = 0.8
"""Of one core: this client runs on one, and requests queue in it well before it is full."""
_REACHED = 0.95


def doubts(measures: Measures, run: LoadRun) -> list[str]:
    """Sentences, most important first; empty where there is nothing to doubt."""
    found = []
    # 1. The client.
    lag = measures.lag
    limit = max(LATE_SECONDS, _PART_OF_TTFT * measures.ttft.p50) if measures.ttft else LATE_SECONDS
    if lag is not None and lag.p99 > limit:
        found.append(
            f"this client sent late: p99 {_ms(lag.p99)} after a request was due, at most {_ms(lag.max)}. "
            "Latencies include that"
        )
    if run.waited_for_connection:
        found.append(
            f"{run.waited_for_connection} requests were due while all connections were in use: "
            "raise --max-connections, or lower --rate"
        )
    delays = spread(run.loop_delays)
    if delays is not None and delays.p99 > LATE_SECONDS:
        found.append(
            f"this client was up to {_ms(delays.p99)} late (p99) in noticing what arrived: "
            "give it a core of its own, or share the load between several clients"
        )
    busy = run.cpu_seconds / run.seconds if run.seconds > 0 else 0.0
    if busy > _BUSY:
        found.append(f"this client kept a core {busy:.0%} busy: share the load between several clients")
    # 2. The load.
    offered, sent = measures.offered_rate, measures.sent_rate
    if offered is not None and sent is not None and sent < _REACHED * offered:
        found.append(f"{offered:.3g} requests per second were due, and {sent:.3g} were sent")
    if run.was_interrupted:
        found.append(f"the run was interrupted: {len(run.outcomes)} of {run.planned} requests were answered")
    # 3. What the server did not say.
    if measures.failed < measures.requests:
        if measures.completion_tokens is None:
            found.append("the server reports no usage: pieces of text are counted as tokens")
        elif measures.cached_tokens is None:
            found.append(
                "the server reports no cached tokens (vLLM does with --enable-prompt-tokens-details)"
            )
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
