"""An explanation in words: the verdict, then each piece of evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvtrie.api.cli.console import escaped, name_text, quoted, shortened
from kvtrie.api.cli.node_text import namespace_facts
from kvtrie.api.cli.quantities import shown_count, shown_seconds, shown_time
from kvtrie.api.inspection.explanation import VERDICTS, Divergence, Elsewhere, Explanation
from kvtrie.api.tokenizer import Tokenizer

_MOST_ELSEWHERE = 5
"""Other namespaces shown; without a scope there may be one for each tenant."""


def explanation_text(found: Explanation, tokenizer: Tokenizer | None, hint: str | None) -> str:
    """The answer as labelled lines; `hint` is one more thing to try."""
    return "\n".join(f"{label:<12}{line}".rstrip() for label, line in _lines(found, tokenizer, hint))


def _lines(found: Explanation, tokenizer: Tokenizer | None, hint: str | None) -> Iterator[tuple[str, str]]:
    # 1. The prompt, and how much of it is cached.
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
    share = 100 * found.cached_tokens / found.prompt_tokens
    whole = shown_count(found.whole_chunks, "whole chunk")
    partial = f" + {shown_count(found.partial_tokens, 'token')} of the next" if found.partial_tokens else ""
    yield "cached", f"{shown_count(found.cached_tokens, 'token')} ({share:.0f} %): {whole}{partial}"
    if found.tiers:
        where = ", ".join(f"{count} in {name_text(tier)}" for tier, count in found.tiers.items())
        through = ", ".join(map(name_text, found.through))
        yield "", f"chunks: {where}; of {through}"
    # 2. Why no more is cached.
    yield "verdict", f"{found.verdict}: {VERDICTS[found.verdict]}"
    if found.divergence is not None:
        yield from _divergence_lines(found.divergence, tokenizer)
    # 3. The evidence: other namespaces, an eviction, a gap, a computation under way.
    for other in found.elsewhere[:_MOST_ELSEWHERE]:
        yield from _elsewhere_lines(other, found)
    if (more := len(found.elsewhere) - _MOST_ELSEWHERE) > 0:
        yield "", f"and under {shown_count(more, 'other namespace')}: --format json has them all"
    if found.eviction is not None:
        gone = found.eviction
        ago = shown_seconds(gone.seconds_ago)
        why = escaped(gone.reason)
        yield "evicted", f"chunk {gone.chunk} left {name_text(gone.tier)} {ago} ago: {why}"
        count = shown_count(gone.chunks, "chunk")
        yield "", f"at {shown_time(gone.evicted_at)}; {count} of this prompt evicted"
    if found.gap is not None:
        stored = found.gap.stored_chunks
        count = shown_count(len(stored), "later chunk")
        missing = found.gap.missing_chunk
        yield "gap", f"chunk {missing} is missing; {count} (up to {stored[-1]}) stored behind it"
    if found.computing is not None:
        busy = found.computing
        which = (
            f"chunk {busy.chunk}"
            if busy.chunks == 1
            else f"chunks {busy.chunk}-{busy.chunk + busy.chunks - 1}"
        )
        since = shown_seconds(busy.seconds)
        yield "computing", f"{which} ({busy.tokens} tokens), for {since} so far"
    # 4. What to ask next.
    if found.scopes:
        yield "scopes", ", ".join(map(name_text, found.scopes))
    if hint is not None:
        yield "hint", hint


def _divergence_lines(found: Divergence, tokenizer: Tokenizer | None) -> Iterator[tuple[str, str]]:
    whose = f"the closest stored path ({name_text(found.scope)}) differs"
    yield "diverges", f"at token {found.position}: {whose if found.stored else 'no stored path goes on'}"
    if found.before:
        yield "  both", f"… {_shown(found.before, tokenizer)}"
    yield "  prompt", f"{_shown(found.prompt, tokenizer)} …"
    if found.stored:
        yield "  stored", f"{_shown(found.stored, tokenizer)} …"


def _elsewhere_lines(other: Elsewhere, found: Explanation) -> Iterator[tuple[str, str]]:
    whole = found.whole_chunks * found.chunk_tokens + found.partial_tokens
    more = "more" if other.matched_tokens > whole else "only" if other.matched_tokens < whole else "as many"
    where = f"{name_text(other.scope)}  namespace {other.digest[:12]}"
    yield "elsewhere", f"{other.matched_tokens} of these tokens ({more}) under {where}, which differs in"
    for difference in other.differences:
        request, stored = (_value(value) for value in (difference.request, difference.stored))
        yield "", f"{difference.field}: request {request}, there {stored}"


def _value(value: str | int) -> str:
    return "(none)" if value == "" else shortened(escaped(str(value)), 80)


def _shown(tokens: Sequence[int], tokenizer: Tokenizer | None) -> str:
    ids = ", ".join(map(str, tokens))
    return f"[{ids}]" if tokenizer is None else f"{quoted(tokenizer.decode(tokens))}  [{ids}]"
