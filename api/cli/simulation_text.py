"""A simulation for people: a table per trace, and histograms one can read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrie.api.cli.console import name_text, speaks_unicode, table
from kvtrie.api.cli.quantities import shown_bytes, shown_count, shown_seconds
from kvtrie.api.trace.simulation import Replayed, Row, Simulation, TraceFacts

MOST_TENANTS = 20
"""Tenants shown per policy and capacity, the busiest first; JSON and CSV have all."""
_BAR = 40
_AGES = ("<1s", "<4s", "<16s", "<1min", "<4min", "<17min", "<1h", "<5h", "<18h", "more")
"""Ends of the columns of ages: each takes two bins of the histogram, the first one, the last all that is left."""


def simulation_text(simulation: Simulation) -> str:
    """All of it."""
    parts = []
    for facts in simulation.facts:
        rows = [row for row in simulation.rows if row.trace == facts.trace]
        replayed = [one for one in simulation.replayed if one.trace == facts.trace]
        parts += [
            _heading(facts),
            _ratios([row for row in rows if row.tenant is None], replayed),
            *_tenants(rows),
            _distances(facts),
            _ages("evicted blocks by time since their last use", [(o, o.idle_seconds) for o in replayed]),
            _ages(
                "evicted blocks by time since they were stored", [(o, o.lifetime_seconds) for o in replayed]
            ),
        ]
    return "\n\n".join(part for part in parts if part)


def trace_text(facts: TraceFacts) -> str:
    """A trace alone."""
    return f"{_heading(facts)}\n\n{_distances(facts)}"


def _heading(facts: TraceFacts) -> str:
    return "\n".join(
        [
            name_text(facts.trace),
            f"{facts.requests:,} requests of {shown_count(facts.tenants, 'tenant')} "
            f"in {shown_seconds(facts.span_seconds)}",
            f"{facts.block_uses:,} blocks of {facts.block_tokens} tokens asked for, {facts.unique_blocks:,} "
            f"different; a cache without limit serves {facts.infinite_hit_ratio:.2%}",
        ]
    )


def _ratios(rows: Sequence[Row], replayed: Sequence[Replayed]) -> str:
    with_bytes = any(row.capacity_bytes is not None for row in rows)
    lines: list[tuple[str, ...]] = [
        (
            "POLICY",
            "CAPACITY",
            "BLOCKS",
            *(["KV"] if with_bytes else []),
            "HIT RATIO",
            "OF TOKENS",
            "EVICTIONS",
            "TOOK",
        )
    ]
    for row, one in zip(rows, replayed):
        lines.append(
            (
                row.policy,
                row.capacity,
                f"{row.capacity_blocks:,}",
                *([shown_bytes(row.capacity_bytes or 0)] if with_bytes else []),
                f"{row.hit_ratio_blocks:.2%}",
                f"{row.hit_ratio_tokens:.2%}",
                f"{one.evictions:,}",
                f"{one.seconds:.1f} s",
            )
        )
    return table(lines)


def _tenants(rows: Sequence[Row]) -> list[str]:
    """A table for each policy and capacity that has rows of tenants."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.tenant is not None:
            groups.setdefault((row.policy, row.capacity), []).append(row)
    parts = []
    for (policy, capacity), mine in groups.items():
        lines: list[tuple[str, ...]] = [("TENANT", "REQUESTS", "BLOCKS", "HIT RATIO", "OF TOKENS")]
        for row in mine[:MOST_TENANTS]:
            ratios = f"{row.hit_ratio_blocks:.2%}", f"{row.hit_ratio_tokens:.2%}"
            lines.append((name_text(row.tenant or ""), f"{row.requests:,}", f"{row.asked_blocks:,}", *ratios))
        more = len(mine) - MOST_TENANTS
        rest = f"\nand {more} more: see --format json" if more > 0 else ""
        parts.append(f"tenants under {policy} at {capacity}\n{table(lines)}{rest}")
    return parts


def _distances(facts: TraceFacts) -> str:
    counts = facts.reuse_distance_blocks
    last = max((place for place, count in enumerate(counts) if count), default=-1)
    named = [(_range(place), counts[place]) for place in range(last + 1)]
    named.append(("first use", facts.first_uses))
    most = max(count for _, count in named) or 1
    full = "█" if speaks_unicode() else "#"
    lines = [
        (name, f"{count / facts.block_uses:6.2%}", full * round(_BAR * count / most)) for name, count in named
    ]
    return f"blocks used since a block's last use\n{table(lines)}"


def _ages(title: str, histograms: Sequence[tuple[Replayed, Sequence[int]]]) -> str:
    lines: list[tuple[str, ...]] = [("POLICY", "CAPACITY", *_AGES)]
    for one, counts in histograms:
        if one.evictions:
            shares = [sum(part) / one.evictions for part in _pairs(counts)]
            lines.append((one.policy, one.capacity, *(f"{share:.0%}" if share else "" for share in shares)))
    return f"{title}\n{table(lines)}" if len(lines) > 1 else ""


def _pairs(counts: Sequence[int]) -> list[Sequence[int]]:
    ends = [1 + 2 * place for place in range(len(_AGES) - 1)]
    return [counts[begin:end] for begin, end in zip([0, *ends], [*ends, len(counts)])]


def _range(place: int) -> str:
    if place == 0:
        return "0"
    low, high = 2 ** (place - 1), 2**place - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
