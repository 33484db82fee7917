"""What is said about a line of the tree, in text and in DOT alike. Everything returned is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvtrie.api.cli.console import escaped, name_text, quoted, shortened
from kvtrie.api.cli.quantities import shown_bytes, shown_count, shown_seconds, shown_time
from kvtrie.api.cli.tree_runs import Segment
from kvtrie.api.tokenizer import Tokenizer
from kvtrie.prefix_tree.snapshot import NamespaceView, PinView, Snapshot

PREVIEW_TOKENS = 32
"""Tokens decoded for a preview."""
PREVIEW_IDS = 6
PREVIEW_CHARACTERS = 48


def span_text(snapshot: Snapshot, segment: Segment) -> str:
    """`chunks 3-12, tokens 128-768`: half-open in tokens."""
    first, last = segment[0], segment[-1]
    chunk_tokens = int(snapshot.namespaces[first.namespace].fields["chunk_tokens"])
    chunks = f"chunk {first.depth}" if first is last else f"chunks {first.depth}-{last.depth}"
    return f"{chunks} [{(first.depth - 1) * chunk_tokens}:{last.depth * chunk_tokens})"


def tokens_text(tokens: list[int], tokenizer: Tokenizer | None, width: int = PREVIEW_CHARACTERS) -> str:
    """The beginning of `tokens`, as quoted text or as ids."""
    if tokenizer is None:
        shown = ", ".join(map(str, tokens[:PREVIEW_IDS]))
        return f"[{shown}, …]" if len(tokens) > PREVIEW_IDS else f"[{shown}]"
    # Cut before escaping: half an escape sequence would read as another text.
    text = tokenizer.decode(tokens[:PREVIEW_TOKENS])
    cut = text if len(text) <= width and len(tokens) <= PREVIEW_TOKENS else text[: width - 1] + "…"
    return quoted(cut)


def segment_text(
    segment: Segment, tokenizer: Tokenizer | None, shared_tokens: int = 0, width: int = PREVIEW_CHARACTERS
) -> str:
    """The beginning of a segment's tokens; `shared_tokens` that a neighbour begins with too are left out."""
    tokens: list[int] = []
    for node in segment:
        tokens += node.tokens
        if len(tokens) > shared_tokens + PREVIEW_TOKENS:
            break
    text = tokens_text(tokens[shared_tokens:], tokenizer, width)
    return f"…+{shared_tokens} {text}" if shared_tokens else text


def facts(snapshot: Snapshot, segment: Segment) -> list[str]:
    """Readers, hits, bytes by tier, pin, age and state; what is zero or absent is left out."""
    first, last = segment[0], segment[-1]
    found = []
    if first.parent is None and first.depth > 1:
        found.append("orphan: the chunk above is missing")
    if first.readers:
        found.append(shown_count(first.readers, "reader"))
    if first.hits or last.hits:
        hits = shown_count(first.hits, "hit")
        found.append(hits if first.hits == last.hits else f"{last.hits}-{first.hits} hits")
    for tier in first.tiers:
        found.append(f"{shown_bytes(sum(node.tiers[tier] for node in segment))} {name_text(tier)}")
    if first.pin is not None:
        found.append(pin_text(first.pin, snapshot.taken_at))
    if first.pending:
        since = shown_seconds(snapshot.taken_at - first.created_at)
        found.append(f"pending: being computed for {since}")
    else:
        used = max(node.last_used_at for node in segment)
        found.append(f"used {shown_seconds(max(0.0, snapshot.taken_at - used))} ago")
    return found


def pin_text(pin: PinView, now: float) -> str:
    """`pinned tools until 2026-01-31 12:00:00 UTC`."""
    name = f" {name_text(pin.name)}" if pin.name else ""
    if pin.expires_at is None:
        return f"pinned{name}, no expiry"
    state = "expired" if pin.expires_at <= now else f"{shown_seconds(pin.expires_at - now)} left"
    return f"pinned{name} until {shown_time(pin.expires_at)} ({state})"


def common_fields(namespaces: Sequence[NamespaceView]) -> set[str]:
    """Names of the fields, but the scope, in which all namespaces are alike; none if there are fewer than two."""
    if len(namespaces) < 2:
        return set()
    first = namespaces[0].fields
    return {
        name
        for name in first
        if name != "scope" and all(other.fields[name] == first[name] for other in namespaces)
    }


def namespace_facts(namespace: NamespaceView, told: Collection[str] = ()) -> list[str]:
    """The digest and the fields that are set, digests shortened; without the fields `told`."""
    return [f"namespace {namespace.digest[:12]}", *field_facts(namespace, set(namespace.fields) - set(told))]


def field_facts(namespace: NamespaceView, names: Collection[str]) -> list[str]:
    """Those of the fields `names` that are set, digests shortened."""
    fields = namespace.fields
    found = []
    for name, label in (
        ("model_config", "config"),
        ("weights", "weights"),
        ("revision", "revision"),
        ("adapter", "adapter"),
        ("kv_dtype", "KV"),
        ("layout", "layout"),
    ):
        value = str(fields[name])
        if value and name in names:
            is_digest = name in ("model_config", "weights", "adapter")
            found.append(f"{label} {shortened(escaped(value), 12 if is_digest else 60)}")
    if fields["salt"] and "salt" in names:
        found.append("salted")
    if "chunk_tokens" in names:
        found.append(f"{fields['chunk_tokens']} tokens per chunk")
    if "fidelity" in names:
        found.append(shortened(escaped(str(fields["fidelity"])), 60))
    return found
