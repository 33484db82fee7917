"""The question to `explain`, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtrie.prefix_tree.snapshot import NamespaceView

FORMAT = "kvtrie-explanation"
VERSION = 1

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
    """Whose request it is, and what is known about its namespace."""

    scope: str | None = None
    """Scope of the request's tenant; None asks about the whole snapshot."""
    shared_scopes: Collection[str] = ()
    """Shared scopes that `scope` may read, besides those that the snapshot shows."""
    expected: Mapping[str, FieldValue] = field(default_factory=dict)
    """Fields of the request's namespace. Digests may be cut to 8 hex digits or more."""
    context_tokens: int = 8
    """Tokens shown on each side of a divergence."""


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
    """How many of the prompt's chunks have a tombstone."""


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
    whole_chunks: int
    """Chunks that match in full."""
    partial_tokens: int
    """Tokens that match the beginning of one more chunk; these are copied."""
    tiers: dict[str, int]
    """Number of matched whole chunks by tier; each counts in the fastest tier that holds it."""
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


def explanation_document(found: Explanation, decode: Callable[[Sequence[int]], str] | None) -> dict[str, Any]:
    """An explanation as a JSON object; `decode` adds the text around a divergence."""
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(found)}
    document["meaning"] = VERDICTS[found.verdict]
    if found.divergence is not None and decode is not None:
        for name in ("before", "prompt", "stored"):
            document["divergence"][f"{name}_text"] = decode(getattr(found.divergence, name))
    return document
