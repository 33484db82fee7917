"""The question to `explain`, and its answer: data only. `explain.py` finds the verdict, `advice.py` the advice."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvtrie.prefix_tree.snapshot import NamespaceView

FieldValue = str | int

VERDICTS = {
    "short": "the prompt is shorter than one chunk: at most, tokens are copied from a stored one",
    "hit": "all but the last token are cached; the last is always computed",
    "tail": "every whole chunk is cached; the rest does not fill a chunk, and only whole chunks are stored",
    "computing": "the next chunk is being computed right now by another request",
    "evicted": "the next chunk of the prompt was cached, and has been evicted",
    "gap": "later chunks are stored, but one before them is missing, so none of them can be reached",
    "namespace": "the tokens are cached under another namespace, whose keys and values differ",
    "empty": "nothing is cached in this scope",
    "diverged": "the prompt differs from every stored path",
    "ends": "the stored path ends here; nothing that continues it has been cached",
}
"""Every verdict and its meaning, in the order in which they are considered."""


@dataclass(frozen=True, slots=True)
class Question:
    """The scope of a request, and known fields of its namespace."""

    scope: str | None = None
    """Scope of the request's tenant; None asks about the whole snapshot."""
    shared_scopes: Collection[str] = ()
    """Shared scopes that `scope` may read, besides those that the snapshot shows."""
    expected: Mapping[str, FieldValue] = field(default_factory=dict)
    """Fields of the request's namespace. Digests may be cut to 8 hex digits or more."""
    context_tokens: int = 8
    """Tokens shown on each side of a divergence."""
    prefill_tokens_per_second: float | None = None
    """Prompt tokens that the model computes in a second, above 0; None if unknown."""


@dataclass(frozen=True, slots=True)
class Change:
    """How a prompt differs from a stored path that it is equal to again after the difference."""

    kind: str
    """`inserted`: the stored path lacks some of the prompt. `removed`: the prompt lacks some of the stored path.
    `replaced`: each has some tokens of its own."""
    prompt_tokens: int
    """Tokens of the prompt from the divergence to where both are equal again."""
    stored_tokens: int
    """Tokens of the stored path in their place."""
    after_tokens: int
    """Tokens of the prompt after the change."""
    same_tokens: int
    """Those of them that the stored path has too, in the same order; runs of fewer than 8 are not counted."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token at which the closest stored path differs from the prompt."""

    position: int
    """Index of that token in the prompt."""
    before: list[int]
    """Tokens just before it, which both have."""
    prompt: list[int]
    """The prompt from there on."""
    stored: list[int]
    """The closest stored path from there on; empty where it ends."""
    scope: str
    """Scope of the stored path."""
    change: Change | None
    """What kind of change it is; None if nothing is the same after it, or if it is not why the prompt missed."""


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A namespace field whose two values keep the request from using the stored chunks."""

    field: str
    request: FieldValue
    """Its value in the namespace of the request."""
    stored: FieldValue
    """Its value in the namespace that holds the tokens."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another visible namespace that holds a part of the prompt."""

    digest: str
    scope: str
    matched_tokens: int
    """Cached tokens that the prompt would have there: never its last token."""
    differences: list[FieldDifference]


@dataclass(frozen=True, slots=True)
class EvictionEvidence:
    """The eviction of the prompt's next chunk."""

    chunk: int
    """Number of the chunk in the prompt, from 1."""
    key: str
    tier: str
    reason: str
    evicted_at: float
    """Unix seconds."""
    seconds_ago: float
    chunks: int
    """Number of the prompt's chunks that have a tombstone."""


@dataclass(frozen=True, slots=True)
class Computing:
    """Chunks of the prompt that another request is computing."""

    chunk: int
    """Number of the first of them in the prompt, from 1."""
    chunks: int
    tokens: int
    seconds: float
    """Time since the first was claimed."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Chunks of the prompt that are stored after one that is missing."""

    missing_chunk: int
    """The first chunk that is missing, counting from 1."""
    stored_chunks: list[int]
    """Chunks of the prompt beyond it that are stored, counting from 1."""


@dataclass(frozen=True, slots=True)
class UnknownScope:
    """A scope that the question names, and of which the snapshot has no namespace and no eviction."""

    scope: str
    close: list[str]
    """Scopes of the snapshot whose names are like it, the closest first."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a miss."""

    action: str
    """`begin`, `reorder`, `share`, `align`, `keep` or `refill`."""
    text: str
    """The same in words."""
    saves_tokens: int
    """At most this many more tokens of the prompt would be cached."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `explain`. Fields that do not apply are None or empty."""

    verdict: str
    """One of `VERDICTS`: why no more was cached."""
    scope: str | None
    """`Question.scope`."""
    namespace: NamespaceView | None
    """The namespace the prompt was matched in; None if no visible one has the expected fields."""
    prompt_tokens: int
    chunk_tokens: int
    cached_tokens: int
    """Cached tokens that a request with this prompt would use: at most `prompt_tokens - 1`."""
    computed_tokens: int
    """The prompt's other tokens: what the request costs in prefill."""
    computed_seconds: float | None
    """Time to compute them at the rate of the question; None without one."""
    whole_chunks: int
    """Chunks that match in full."""
    partial_tokens: int
    """Tokens that match the beginning of one more chunk; these are copied."""
    tiers: dict[str, int]
    """Number of matched whole chunks by tier; each counts in the fastest tier that holds it."""
    through: list[str]
    """Scopes that the matched chunks belong to."""
    divergence: Divergence | None
    """None if nothing was lost by it: for a hit, and where the stored path ends within the last whole chunk."""
    elsewhere: list[Elsewhere]
    """Other visible namespaces, the one that holds most of the prompt first."""
    eviction: EvictionEvidence | None
    computing: Computing | None
    gap: Gap | None
    scopes: list[str]
    """Every scope of the snapshot, if no scope was asked for and nothing matched; else empty."""
    unknown_scopes: list[UnknownScope]
    advice: list[Advice]
    """Empty if nothing in the evidence says what would help."""
