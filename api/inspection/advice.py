"""What to do about a miss. Each piece of advice follows from evidence in the explanation; there is none without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvtrie.api.eviction import OVER_QUOTA
from kvtrie.api.inspection.explanation import Advice, Change, Elsewhere, EvictionEvidence, Explanation, Gap

_SETTINGS = ("salt", "kv_dtype", "chunk_tokens", "fidelity")
"""Fields of a namespace that whoever runs a model chooses. The others are the model."""


def advise(found: Explanation) -> list[Advice]:
    """Advice against the cause that the verdict names."""
    # The last token is always computed, so that no advice can save it.
    most = found.computed_tokens - 1
    return [replace(advice, saves_tokens=min(most, advice.saves_tokens)) for advice in _advice(found)]


def _advice(found: Explanation) -> Iterator[Advice]:
    chunk_tokens = found.chunk_tokens
    if found.verdict == "diverged" and found.divergence is not None and found.divergence.change is not None:
        yield from _against_change(found.divergence.position, found.divergence.change, chunk_tokens)
    elif found.verdict == "namespace":
        yield from _against_namespace(found.elsewhere[0], found.cached_tokens)
    elif found.verdict == "evicted" and found.eviction is not None:
        yield _against_eviction(found.eviction, chunk_tokens)
    elif found.verdict == "gap" and found.gap is not None:
        yield _against_gap(found.gap, chunk_tokens)


def _against_change(position: int, change: Change, chunk_tokens: int) -> Iterator[Advice]:
    # Less than a chunk that is the same again is not worth a rewritten prompt.
    if change.same_tokens < chunk_tokens:
        return
    if position == 0 and {change.prompt_tokens, change.stored_tokens} == {0, 1}:
        what = "let both begin alike: one has a token more, such as the BOS token that tokenizers put first"
        yield Advice("begin", what, change.same_tokens)
    elif change.kind == "removed":
        what = "keep the text that is missing, or put text that some prompts lack at the end"
        yield Advice("reorder", what, change.same_tokens)
    else:
        yield Advice("reorder", "move the text that changes to the end of the prompt", change.same_tokens)


def _against_namespace(other: Elsewhere, cached_tokens: int) -> Iterator[Advice]:
    fields = {difference.field for difference in other.differences}
    gained = other.matched_tokens - cached_tokens
    if "scope" in fields and fields <= {"scope", "salt"}:
        what = (
            "put the common prompt into a shared scope that both may read: shared={...} and warm(scope=...)"
        )
        yield Advice("share", what, gained)
    elif fields and fields <= set(_SETTINGS):
        names = " and ".join(name for name in _SETTINGS if name in fields)
        yield Advice("align", f"run both with the same {names}", gained)


def _against_eviction(eviction: EvictionEvidence, chunk_tokens: int) -> Advice:
    more = "raise the scope's quota" if eviction.reason == OVER_QUOTA else f"give {eviction.tier} more memory"
    return Advice(
        "keep", f"pin the prompt with warm(..., pin=SECONDS), or {more}", eviction.chunks * chunk_tokens
    )


def _against_gap(gap: Gap, chunk_tokens: int) -> Advice:
    what = (
        f"send or warm the prompt once: when chunk {gap.missing_chunk} is stored, later ones are used again"
    )
    return Advice("refill", what, len(gap.stored_chunks) * chunk_tokens)
