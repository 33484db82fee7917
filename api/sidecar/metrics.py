"""Figures in Prometheus' text format. Labels are scopes and reasons, never tokens or keys.

`docs/operating.md` has each metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from kvtrie.api.tiers.host_tier import HostTier
from kvtrie.api.tiers.scope_counters import ScopeCounters
from kvtrie.store import WriteBehindStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], int | float]
"""Labels and value."""

_HELP = {
    "matches": "Matches asked for.",
    "requests": "Gets asked for.",
    "prompt_tokens": "Tokens of the chunks that gets asked for.",
    "cached_tokens": "Tokens of the chunks that gets were answered with.",
    "sent_bytes": "Bytes of records sent.",
    "stored_records": "Records taken into the host tier by puts.",
    "stored_bytes": "Bytes of records taken into the host tier by puts.",
    "held_records": "Records put that were held already.",
    "store_chunks": "Chunks read from the store.",
    "store_outages": "Lookups that the store failed.",
    "rejected": "Records put and rejected, by reason.",
    "store_rejected": "Records of the store not used, by reason.",
    "forgotten_namespaces": "Namespaces without chunks that were forgotten to make room.",
    "evictions": "Chunks evicted from the host tier, by reason.",
}


def render_metrics(
    held: HostTier,
    counters: ScopeCounters,
    writing: WriteBehindStats | None,
    what_if: Mapping[str, Mapping[int, float]],
) -> str:
    """The figures of one moment, as text."""
    # 1. Copy the tier's figures under its lock.
    page = Page()
    with held.lock:
        tier = held.tier
        capacity, free, chunks = tier.capacity_bytes, tier.free_bytes, tier.chunks
        scopes = {name: (b.used_bytes, b.pending_bytes) for name, b in sorted(tier.scopes.items())}
        namespaces = len(held.homes(None))
    # 2. The tier.
    page.family("kvtrie_sidecar_capacity_bytes", "gauge", "Capacity of the host tier.", [({}, capacity)])
    page.family("kvtrie_sidecar_free_bytes", "gauge", "Free bytes of the host tier.", [({}, free)])
    page.family("kvtrie_sidecar_chunks", "gauge", "Chunks in the host tier.", [({}, chunks)])
    page.family("kvtrie_sidecar_namespaces", "gauge", "Namespaces in the host tier.", [({}, namespaces)])
    for place, name, help_text in (
        (0, "used", "Bytes of chunk records."),
        (1, "pending", "Bytes of namespaces and their records."),
    ):
        samples: list[Sample] = [({"scope": scope}, figures[place]) for scope, figures in scopes.items()]
        page.family(f"kvtrie_sidecar_{name}_bytes", "gauge", help_text, samples)
    # 3. Counters of each scope.
    totals: dict[str, list[Sample]] = {name: [] for name in _HELP}
    for scope, named in counters.by_scope().items():
        for name, total in named.items():
            family, dot, reason = name.partition(".")
            labels = {"scope": scope, "reason": reason} if dot else {"scope": scope}
            totals.setdefault(family, []).append((labels, total))
    for family, counted in totals.items():
        page.family(f"kvtrie_sidecar_{family}_total", "counter", _HELP.get(family, family), counted)
    # 4. What-if estimates, and the queue to the store.
    page.family(
        "kvtrie_sidecar_what_if_hit_ratio",
        "gauge",
        "Blocks served over blocks asked for, had the scope this many percent of the memory it has now.",
        [
            ({"scope": scope, "memory_percent": str(percent)}, round(ratio, 4))
            for scope, ratios in what_if.items()
            for percent, ratio in ratios.items()
        ],
    )
    if writing is not None:
        for name, figure in asdict(writing).items():
            now = name.startswith("queued")
            page.family(
                f"kvtrie_sidecar_store_{name}{'' if now else '_total'}",
                "gauge" if now else "counter",
                "Writing behind to the store.",
                [({}, figure)],
            )
    return page.text()


class Page:
    """A page of metric families, in the order in which they are added."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, help_text: str, samples: list[Sample]) -> None:
        """Adds one family: its help, its type (`gauge` or `counter`) and a line per sample."""
        self._lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
            self._lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")

    def text(self) -> str:
        """The whole page."""
        return "\n".join(self._lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
