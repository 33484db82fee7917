"""Hit ratios with other memory, as one sentence per scope and a table."""

from __future__ import annotations

from collections.abc import Mapping

from kvtrie.api.cli.console import name_text, table

_TIMES = {50: "half the memory", 100: "as it is", 200: "twice the memory", 400: "four times"}


def what_if_text(ratios: Mapping[str, Mapping[int, float]]) -> str:
    """What `WhatIf` found, for people."""
    if not ratios:
        return "nothing to tell yet: no scope has asked for whole chunks, or this source does not sample requests"
    percents = sorted({percent for mine in ratios.values() for percent in mine})
    rows: list[tuple[str, ...]] = [
        ("SCOPE", *(_TIMES.get(percent, f"{percent}%").upper() for percent in percents))
    ]
    sentences = []
    for scope, mine in sorted(ratios.items()):
        rows.append((name_text(scope), *(f"{mine[p]:.1%}" if p in mine else "" for p in percents)))
        if 100 in mine and 200 in mine:
            sentences.append(f"{name_text(scope)}: twice the memory: {mine[100]:.0%} -> {mine[200]:.0%}")
    note = "blocks served under LRU, estimated from a sample of this server's requests (SHARDS)"
    return "\n\n".join([*(["\n".join(sentences)] if sentences else []), f"{table(rows)}\n{note}"])
