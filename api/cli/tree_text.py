"""A snapshot as text, in the manner of `tree(1)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvtrie.api.cli.console import fitted, name_text, speaks_unicode, wrapped
from kvtrie.api.cli.node_text import (
    PREVIEW_CHARACTERS,
    common_fields,
    facts,
    field_facts,
    namespace_facts,
    segment_text,
    span_text,
)
from kvtrie.api.cli.quantities import shown_bytes, shown_count, shown_time
from kvtrie.api.cli.tree_runs import Branch, branches
from kvtrie.api.tokenizer import Tokenizer
from kvtrie.prefix_tree.snapshot import NodeView, Snapshot
from kvtrie.prefix_tree.tombstones import tombstone_memory

_UNICODE = ("├── ", "└── ", "│   ", "    ")
_ASCII = ("|-- ", "`-- ", "|   ", "    ")


_LEAST_PREVIEW_CHARACTERS = 16
"""A preview is made no shorter than this to make room for what follows it on the line."""


def tree_text(
    shown: Snapshot,
    whole: Snapshot,
    *,
    tokenizer: Tokenizer | None = None,
    expand: bool = False,
    columns: int | None = None,
) -> str:
    """The tree of `shown`, which was filtered out of `whole`; what was left out is counted.

    With `columns`, no line is wider: previews are shorter then, and what is still too long is cut.
    """
    lines = _lines(shown, whole, tokenizer, expand, columns)
    return "\n".join(lines if columns is None else (fitted(line, columns) for line in lines))


def _lines(
    shown: Snapshot, whole: Snapshot, tokenizer: Tokenizer | None, expand: bool, columns: int | None
) -> Iterator[str]:
    yield f"{name_text(shown.source)} snapshot of {shown_time(shown.taken_at)}"
    hidden = Counter(node.parent for node in whole.nodes) - Counter(node.parent for node in shown.nodes)
    chunks = Counter(node.namespace for node in shown.nodes)
    # What all namespaces have in common, mostly the model, is told once.
    common = common_fields(shown.namespaces)
    if common:
        every = f"all {len(shown.namespaces):,} namespaces"
        yield from _wrapped("  ".join([every, *field_facts(shown.namespaces[0], common)]), columns)
    for number, tops in branches(shown, expand):
        namespace = shown.namespaces[number]
        yield ""
        facts_of_it = "  ".join(namespace_facts(namespace, told=common))
        heading = f"{name_text(namespace.scope)}  {shown_count(chunks[number], 'chunk')}"
        yield from (
            [f"{heading}  {facts_of_it}"] if common else [heading, *_wrapped(f"  {facts_of_it}", columns)]
        )
        yield from _branch_lines(shown, number, tops, hidden, tokenizer, columns)
    yield ""
    yield from _totals(shown, whole)


def _branch_lines(
    shown: Snapshot,
    number: int,
    tops: list[Branch],
    hidden: Counter[int | None],
    tokenizer: Tokenizer | None,
    columns: int | None,
) -> Iterator[str]:
    fork, last, bar, gap = _UNICODE if speaks_unicode() else _ASCII
    pending = [(branch, "", i == len(tops) - 1, number, 0) for i, branch in enumerate(tops)][::-1]
    while pending:
        branch, prefix, is_last, above, shared = pending.pop()
        below = prefix + (gap if is_last else bar)
        lead = prefix + (last if is_last else fork)
        for segment in branch.segments:
            owner = segment[0].namespace
            before = [lead + span_text(shown, segment)]
            if owner != above:
                before.append(f"continued by {name_text(shown.namespaces[owner].scope)}")
            after = facts(shown, segment)
            if more := hidden[segment[-1].id]:
                after.append(f"+{more} not shown below")
            line = "  ".join([*before, segment_text(segment, tokenizer, shared), *after])
            if columns is not None and len(line) > columns:
                room = max(_LEAST_PREVIEW_CHARACTERS, PREVIEW_CHARACTERS - (len(line) - columns))
                line = "  ".join([*before, segment_text(segment, tokenizer, shared, room), *after])
            yield line
            lead, above, shared = below, owner, 0
        pending.extend(
            (child, below, i == len(branch.children) - 1, above, branch.shared_tokens(i))
            for i, child in reversed(list(enumerate(branch.children)))
        )


def _wrapped(line: str, columns: int | None) -> list[str]:
    """Facts about a model are wrapped and not cut: there is one such line, or one for each namespace."""
    return [line] if columns is None else wrapped(line, columns, 4).splitlines()


def _totals(shown: Snapshot, whole: Snapshot) -> Iterator[str]:
    count = shown_count(len(shown.nodes), "chunk")
    some = f"{count} of {len(whole.nodes):,}" if len(shown.nodes) < len(whole.nodes) else count
    tokens = sum(len(node.tokens) for node in shown.nodes)
    pending = sum(node.pending for node in shown.nodes)
    orphans = sum(_is_orphan(node) for node in shown.nodes)
    parts = [some, f"{tokens:,} tokens", shown_count(len(shown.namespaces), "namespace")]
    parts += [f"{pending} pending"] if pending else []
    parts += [shown_count(orphans, "orphan")] if orphans else []
    yield "total  " + ", ".join(parts)
    for tier in shown.tiers:
        held = [node.tiers[tier.name] for node in shown.nodes if tier.name in node.tiers]
        of = f" of {shown_bytes(tier.capacity_bytes)}" if tier.capacity_bytes else ""
        reserved = f", {shown_bytes(tier.pending_bytes)} pending" if tier.pending_bytes else ""
        where = shown_count(len(held), "chunk")
        yield f"  {name_text(tier.name)}: {shown_bytes(sum(held))}{of} in {where}{reserved}"
    stones = len(shown.tombstones)
    taken_bytes = tombstone_memory(stones, len({stone.scope for stone in shown.tombstones}))
    yield f"  {shown_count(stones, 'tombstone')}: {shown_bytes(taken_bytes)}"
    corrupt = shown.counters.get("store.corrupt", 0)
    if corrupt:
        reasons = {
            name.removeprefix("store.corrupt."): count
            for name, count in shown.counters.items()
            if name.startswith("store.corrupt.")
        }
        why = ", ".join(f"{count} {name_text(name)}" for name, count in sorted(reasons.items()))
        yield f"  {corrupt} records not usable: {why}"


def _is_orphan(node: NodeView) -> bool:
    return node.parent is None and node.depth > 1
