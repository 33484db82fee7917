"""An explanation in words: the verdict, then each piece of evidence, then what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtrie.api.cli.console import escaped, name_text, quoted, shortened, wrapped
from kvtrie.api.cli.node_text import namespace_facts
from kvtrie.api.cli.quantities import shown_count, shown_duration, shown_seconds, shown_time
from kvtrie.api.inspection.explanation import (
    VERDICTS,
    Advice,
    Change,
    Computing,
    Divergence,
    Elsewhere,
    EvictionEvidence,
    Explanation,
    Gap,
    UnknownScope,
)
from kvtrie.api.tokenizer import Tokenizer

_MOST_ELSEWHERE = 5
"""Other namespaces shown; without a scope there may be one for each tenant."""
_INDENT = 12

Lines = Iterator[tuple[str, str]]
"""A label, empty where the one above goes on, and what is said."""


def explanation_text(
    found: Explanation, tokenizer: Tokenizer | None, hint: str | None, columns: int | None = None
) -> str:
    """The answer as labelled lines, wrapped at `columns`; `hint` is one more thing to try."""
    lines = [f"{label:<{_INDENT}}{line}".rstrip() for label, line in _lines(found, tokenizer, hint)]
    return "\n".join(lines if columns is None else (wrapped(line, columns, _INDENT) for line in lines))


def _lines(found: Explanation, tokenizer: Tokenizer | None, hint: str | None) -> Lines:
    # 1. The prompt, how much of it is cached, and why no more.
    yield from _match_lines(found)
    yield "verdict", f"{found.verdict}: {VERDICTS[found.verdict]}"
    if found.divergence is not None:
        yield from _divergence_lines(found.divergence, tokenizer)
        if found.divergence.change is not None:
            yield from _change_lines(found.divergence.change)
        elif found.verdict == "diverged":
            yield "change", "nothing after it is the same"
    # 2. The evidence: other namespaces, an eviction, a gap, a computation under way.
    for other in found.elsewhere[:_MOST_ELSEWHERE]:
        yield from _elsewhere_lines(other, found)
    if (more := len(found.elsewhere) - _MOST_ELSEWHERE) > 0:
        yield "", f"and under {shown_count(more, 'other namespace')}: --format json has them all"
    if found.eviction is not None:
        yield from _eviction_lines(found.eviction)
    if found.gap is not None:
        yield from _gap_lines(found.gap)
    if found.computing is not None:
        yield from _computing_lines(found.computing)
    # 3. Scopes to choose from, and what to do.
    if found.scopes:
        yield "scopes", ", ".join(map(name_text, found.scopes))
    for unknown in found.unknown_scopes:
        yield "scope", unknown_scope_text(unknown)
    for advice in found.advice:
        yield "advice", _advice_text(advice)
    if hint is not None:
        yield "hint", hint


def unknown_scope_text(unknown: UnknownScope) -> str:
    """That the snapshot has no such scope, and which it has that are like it."""
    is_not = f"{name_text(unknown.scope)} is not in this snapshot"
    if not unknown.close:
        return f"{is_not}: kvtrie stats lists its scopes"
    return f"{is_not}; did you mean {' or '.join(map(name_text, unknown.close))}?"


def _match_lines(found: Explanation) -> Lines:
    chunks, rest = divmod(found.prompt_tokens, found.chunk_tokens)
    unit = f"{shown_count(chunks, 'whole chunk')} of {found.chunk_tokens}"
    yield (
        "prompt",
        f"{shown_count(found.prompt_tokens, 'token')}: {unit}" + (f" and {rest} more" if rest else ""),
    )
    if found.namespace is not None:
        yield "in", f"{name_text(found.namespace.scope)}  {'  '.join(namespace_facts(found.namespace))}"
    elif found.scope is not None:
        yield "in", name_text(found.scope)
    # Never 100: the last token is not cached.
    share = min(99, round(100 * found.cached_tokens / found.prompt_tokens))
    parts = shown_count(found.whole_chunks, "whole chunk")
    if found.partial_tokens:
        parts += f" + {shown_count(found.partial_tokens, 'token')} of the next"
    if found.whole_chunks * found.chunk_tokens + found.partial_tokens > found.cached_tokens:
        parts += ", but not the prompt's last token"
    yield "cached", f"{shown_count(found.cached_tokens, 'token')} ({share} %): {parts}"
    if found.tiers:
        where = ", ".join(f"{count:,} in {name_text(tier)}" for tier, count in found.tiers.items())
        through = ", ".join(map(name_text, found.through))
        yield "", f"chunks: {where}; of {through}"
    cost = f"{shown_count(found.computed_tokens, 'token')} to compute"
    if found.computed_seconds is not None:
        cost += f", about {shown_duration(found.computed_seconds)}"
    yield "cost", cost


def _divergence_lines(found: Divergence, tokenizer: Tokenizer | None) -> Lines:
    at = f"at token {found.position:,}"
    if found.stored:
        yield "diverges", f"{at}: the closest stored path ({name_text(found.scope)}) differs"
    else:
        yield "ends", f"{at}: no stored path continues from there"
    if found.before:
        yield "  both", f"… {_shown(found.before, tokenizer)}"
    yield "  prompt", f"{_shown(found.prompt, tokenizer)} …"
    if found.stored:
        yield "  stored", f"{_shown(found.stored, tokenizer)} …"


def _change_lines(change: Change) -> Lines:
    mine = shown_count(change.prompt_tokens, "token")
    stored = shown_count(change.stored_tokens, "token")
    yield (
        "change",
        {
            "inserted": f"inserted: {mine} that the stored path lacks",
            "removed": f"removed: {stored} of the stored path",
            "replaced": f"replaced: {stored} of the stored path, by {change.prompt_tokens:,}",
        }[change.kind],
    )
    yield "", f"{change.same_tokens:,} of {shown_count(change.after_tokens, 'token')} after it are the same"


def _elsewhere_lines(other: Elsewhere, found: Explanation) -> Lines:
    here, there = found.cached_tokens, other.matched_tokens
    more = "more" if there > here else "fewer" if there < here else "as many"
    where = f"{name_text(other.scope)}  namespace {other.digest[:12]}"
    yield (
        "elsewhere",
        f"{shown_count(there, 'token')} cached ({more}) under {where}, which differs in",
    )
    for difference in other.differences:
        request, stored = (_value(value) for value in (difference.request, difference.stored))
        yield "", f"{difference.field}: request {request}, there {stored}"


def _eviction_lines(eviction: EvictionEvidence) -> Lines:
    ago = shown_seconds(eviction.seconds_ago)
    why = escaped(eviction.reason)
    yield "evicted", f"chunk {eviction.chunk:,} left {name_text(eviction.tier)} {ago} ago: {why}"
    count = shown_count(eviction.chunks, "chunk")
    yield "", f"at {shown_time(eviction.evicted_at)}; {count} of this prompt evicted"


def _gap_lines(gap: Gap) -> Lines:
    count = shown_count(len(gap.stored_chunks), "later chunk")
    last = gap.stored_chunks[-1]
    yield "gap", f"chunk {gap.missing_chunk:,} is missing; {count} (up to {last:,}) stored behind it"


def _computing_lines(busy: Computing) -> Lines:
    last = busy.chunk + busy.chunks - 1
    which = f"chunk {busy.chunk:,}" if busy.chunks == 1 else f"chunks {busy.chunk:,}-{last:,}"
    since = shown_seconds(busy.seconds)
    yield "computing", f"{which} ({shown_count(busy.tokens, 'token')}), for {since} so far"


def _advice_text(advice: Advice) -> str:
    return f"{escaped(advice.text)}; up to {shown_count(advice.saves_tokens, 'more token')} would be cached"


def _value(value: str | int) -> str:
    return "(none)" if value == "" else shortened(escaped(str(value)), 80)


def _shown(tokens: Sequence[int], tokenizer: Tokenizer | None) -> str:
    ids = ", ".join(map(str, tokens))
    return f"[{ids}]" if tokenizer is None else f"{quoted(tokenizer.decode(tokens))}  [{ids}]"
