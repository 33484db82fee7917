"""A snapshot as text, in the manner of `tree(1)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kvtrie.api.cli.console import name_text, speaks_unicode
from kvtrie.api.cli.node_text import facts, namespace_facts, segment_text, span_text
from kvtrie.api.cli.quantities import shown_bytes, shown_count, shown_time
from kvtrie.api.cli.tree_runs import Branch, branches
from kvtrie.api.tokenizer import Tokenizer
from kvtrie.prefix_tree.snapshot import NodeView, Snapshot
from kvtrie.prefix_tree.tombstones import tombstone_memory

_UNICODE = ("├── ", "└── ", "│   ", "    ")
_ASCII = ("|-- ", "`-- ", "|   ", "    ")


def tree_text(
    shown: Snapshot, whole: Snapshot, *, tokenizer: Tokenizer | None = None, expand: bool = False
) -> str:
    """The tree of `shown`, which was filtered out of `whole`; what was left out is counted."""
    return "\n".join(_lines(shown, whole, tokenizer, expand))


def _lines(shown: Snapshot, whole: Snapshot, tokenizer: Tokenizer | None, expand: bool) -> Iterator[str]:
    yield f"{name_text(shown.source)} snapshot of {shown_time(shown.taken_at)}"
    hidden = Counter(node.parent for node in whole.nodes) - Counter(node.parent for node in shown.nodes)
    chunks = Counter(node.namespace for node in shown.nodes)
    for number, tops in branches(shown, expand):
        namespace = shown.namespaces[number]
        yield ""
        yield f"{name_text(namespace.scope)}  {shown_count(chunks[number], 'chunk')}"
        yield f"  {'  '.join(namespace_facts(namespace))}"
        yield from _branch_lines(shown, number, tops, hidden, tokenizer)
    yield ""
    yield from _totals(shown, whole)


def _branch_lines(
    shown: Snapshot, number: int, tops: list[Branch], hidden: Counter[int | None], tokenizer: Tokenizer | None
) -> Iterator[str]:
    fork, last, bar, gap = _UNICODE if speaks_unicode() else _ASCII
    pending = [(branch, "", i == len(tops) - 1, number, 0) for i, branch in enumerate(tops)][::-1]
    while pending:
        branch, prefix, is_last, above, shared = pending.pop()
        below = prefix + (gap if is_last else bar)
        lead = prefix + (last if is_last else fork)
        for segment in branch.segments:
            owner = segment[0].namespace
            text = segment_text(segment, tokenizer, shared)
            words = [span_text(shown, segment), text, *facts(shown, segment)]
            if owner != above:
                words.insert(1, f"continued by {name_text(shown.namespaces[owner].scope)}")
            if more := hidden[segment[-1].id]:
                words.append(f"+{more} not shown below")
            yield lead + "  ".join(words)
            lead, above, shared = below, owner, 0
        pending.extend(
            (child, below, i == len(branch.children) - 1, above, branch.shared_tokens(i))
            for i, child in reversed(list(enumerate(branch.children)))
        )


def _totals(shown: Snapshot, whole: Snapshot) -> Iterator[str]:
    count = shown_count(len(shown.nodes), "chunk")
    some = f"{count} of {len(whole.nodes)}" if len(shown.nodes) < len(whole.nodes) else count
    tokens = sum(len(node.tokens) for node in shown.nodes)
    pending = sum(node.pending for node in shown.nodes)
    orphans = sum(_is_orphan(node) for node in shown.nodes)
    parts = [some, f"{tokens} tokens", shown_count(len(shown.namespaces), "namespace")]
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
