"""`kvtrie stats`: a tree in figures."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from kvtrie.api.cli.console import name_text, table, write
from kvtrie.api.cli.quantities import shown_bytes, shown_count, shown_time
from kvtrie.api.cli.snapshot_source import add_source_arguments, read_snapshot
from kvtrie.api.cli.what_if_text import what_if_text
from kvtrie.api.inspection.snapshot_stats import SnapshotStats, snapshot_stats
from kvtrie.api.traffic.what_if import from_counters, without_what_if

HELP = "count what a tree holds: tiers, scopes, sharing, hits, evictions"
EXAMPLES = (
    "kvtrie stats tree.json",
    "kvtrie stats --url unix:///run/kvtrie.sock --what-if",
    "kvtrie stats --store redis://127.0.0.1:6379/0 --format json",
)
FORMAT = "kvtrie-stats"
VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `stats`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--what-if", action="store_true", help="what each scope's hit ratio would be with other memory"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Prints the figures."""
    stats = snapshot_stats(read_snapshot(args))
    what_if = from_counters(stats.counters)
    stats = replace(stats, counters=without_what_if(stats.counters))
    if args.format == "json":
        write(json.dumps({"format": FORMAT, "version": VERSION, **asdict(stats), "what_if": what_if}))
    elif args.what_if:
        write(what_if_text(what_if))
    else:
        write("\n\n".join(part for part in (_summary(stats), _tiers(stats), _counters(stats)) if part))
    return 0


def _summary(stats: SnapshotStats) -> str:
    ratio = f" ({stats.path_tokens / stats.unique_tokens:.2f}x shared)" if stats.unique_tokens else ""
    states = [
        f"{count:,} {what}"
        for count, what in (
            (stats.pending_nodes, "pending"),
            (stats.leased_nodes, "leased"),
            (stats.pinned_nodes, "pinned"),
            (stats.orphans, "orphaned"),
        )
        if count
    ]
    return table(
        [
            ("source", f"{name_text(stats.source)}, {shown_time(stats.taken_at)}"),
            ("namespaces", f"{stats.namespaces:,} in {shown_count(len(stats.scopes), 'scope')}"),
            ("chunks", ", ".join([f"{stats.nodes:,}", *states])),
            ("paths", f"{stats.paths:,}"),
            (
                "deepest path",
                f"{shown_count(stats.deepest_chunks, 'chunk')}, {stats.deepest_tokens:,} tokens",
            ),
            ("tokens stored", f"{stats.unique_tokens:,}; the paths add up to {stats.path_tokens:,}{ratio}"),
            ("hits", f"{stats.hits:,}"),
            ("tombstones", f"{stats.tombstones:,}, {shown_bytes(stats.tombstone_bytes)}"),
        ]
    )


def _tiers(stats: SnapshotStats) -> str:
    rows: list[tuple[str, ...]] = [("TIER", "SCOPE", "CAPACITY", "USED", "PENDING", "FREE", "CHUNKS")]
    for tier in stats.tiers:
        # A tier that cannot tell its capacity says 0.
        capacity, free = (
            shown_bytes(size) if tier.capacity_bytes else "?"
            for size in (tier.capacity_bytes, tier.free_bytes)
        )
        used, pending = shown_bytes(tier.used_bytes), shown_bytes(tier.pending_bytes)
        rows.append((name_text(tier.name), "all", capacity, used, pending, free, f"{tier.chunks:,}"))
        for scope, booked in sorted(tier.scopes.items()):
            used, pending = (shown_bytes(booked.get(name, 0)) for name in ("used_bytes", "pending_bytes"))
            rows.append(("", name_text(scope), "", used, pending, "", ""))
    return table(rows)


def _counters(stats: SnapshotStats) -> str:
    if not stats.counters:
        return ""
    rows: list[tuple[str, ...]] = [("COUNTER", "VALUE")]
    rows += [(name_text(name), f"{value:,}") for name, value in sorted(stats.counters.items())]
    return table(rows)
