"""What `explain` is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kvtrie.prefix_tree.snapshot import NamespaceView

FieldValue = str | int

VERDICTS = {
    "short": "the prompt is shorter than one chunk: only whole chunks are stored, it can but copy from one",
    "hit": "all but the last token are cached; the last is always computed",
    "tail": "every whole chunk is cached; the rest does not fill one, and only whole chunks are stored",
    "computing": "the next chunk is being computed right now by another request",
    "evicted": "the prompt went on in the cache, and that was evicted",
    "gap": "later chunks are stored, but one before them is missing, so none of them can be reached",
    "namespace": "the tokens are cached under another namespace, whose keys and values are not this one's",
    "empty": "nothing is cached in this scope",
    "diverged": "the prompt differs from every stored path",
    "ends": "the stored path ends here; nothing that continues it has been cached",
}
"""Every verdict, in the order in which it is considered, with what it means."""


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks, and what is known about the namespace that the request computes in."""

    scope: str | None = None
    """The tenant whose request it is; None asks about the whole snapshot."""
    shared_scopes: Collection[str] = ()
    """Scopes that `scope` may read besides those the snapshot shows it to read."""
    expected: Mapping[str, FieldValue] = field(default_factory=dict)
    """Namespace fields of the request. Digests may be cut to 8 digits or more."""
    context_tokens: int = 8
    """Tokens shown on each side of a divergence."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token at which the closest stored path is not the prompt."""

    position: int
    """Index of that token in the prompt."""
    before: list[int]
    """Tokens that both have just before it."""
    prompt: list[int]
    """The prompt from there on."""
    stored: list[int]
    """The closest stored path from there on; empty where it ends."""
    scope: str
    """Whose path it is."""


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """One namespace field that keeps two requests from sharing."""

    field: str
    request: FieldValue
    """Its value in the namespace of the request."""
    stored: FieldValue
    """Its value in the namespace that holds the tokens."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The prompt in another visible namespace."""

    digest: str
    scope: str
    matched_tokens: int
    differences: list[FieldDifference]


@dataclass(frozen=True, slots=True)
class EvictionEvidence:
    """What became of the prompt's next chunk."""

    chunk: int
    """Which chunk of the prompt, counting from 1."""
    key: str
    tier: str
    reason: str
    evicted_at: float
    """Unix seconds."""
    seconds_ago: float
    chunks: int
    """How many of the prompt's chunks are remembered as evicted."""


@dataclass(frozen=True, slots=True)
class Computing:
    """Chunks of the prompt that another request is computing."""

    chunk: int
    """The first of them, counting from 1."""
    chunks: int
    tokens: int
    seconds: float
    """Since it was claimed."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Chunks of the prompt that are stored behind one that is not."""

    missing_chunk: int
    """The first chunk that is missing, counting from 1."""
    stored_chunks: list[int]
    """Chunks of the prompt beyond it that are stored, counting from 1."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. What does not apply is None or empty."""

    verdict: str
    """One of `VERDICTS`: why no more was cached."""
    scope: str | None
    """As asked."""
    namespace: NamespaceView | None
    """The namespace the prompt was matched in; None where no visible one is as expected."""
    prompt_tokens: int
    chunk_tokens: int
    cached_tokens: int
    """What a request with this prompt would get: at most `prompt_tokens - 1`."""
    whole_chunks: int
    """Chunks that match in full."""
    partial_tokens: int
    """Matched tokens of one more chunk, which are copied."""
    tiers: dict[str, int]
    """The matched whole chunks by the fastest tier that holds each."""
    through: list[str]
    """Scopes that the matched chunks belong to."""
    divergence: Divergence | None
    elsewhere: list[Elsewhere]
    """Other visible namespaces, the one that holds most of the prompt first."""
    eviction: EvictionEvidence | None
    computing: Computing | None
    gap: Gap | None
    scopes: list[str]
    """Every scope of the snapshot, if no scope was asked for and nothing matched; else empty."""
