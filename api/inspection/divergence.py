"""Where a prompt differs from the closest stored path, what kind of change it is, and what is the same after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from kvtrie.api.inspection.common_blocks import MOST_TOKENS, common_blocks
from kvtrie.api.inspection.explanation import Change, Divergence
from kvtrie.api.inspection.snapshot_match import SnapshotIndex, StoredMatch, common_tokens
from kvtrie.prefix_tree.snapshot import NodeView

_SHINGLE_TOKENS = 8
"""Fewest equal tokens that count as the same text. Prompts about different things share shorter ones."""
_MOST_CANDIDATES = 4096
"""Chunks compared at a fork, those with most hits first."""

Shingle = tuple[int, ...]


def find_divergence(
    index: SnapshotIndex, best: StoredMatch, tokens: Sequence[int], context_tokens: int
) -> Divergence | None:
    """The first token that differs from the closest stored path, or at which the stored path ends.

    None if the prompt ends before. `Divergence.change` is left None: see `with_change`.
    """
    position = (len(best.path) + len(best.awaits)) * best.chunk_tokens + best.closest_tokens
    if position >= len(tokens):
        return None
    stored = _Continuation(index, best, tokens[position:]).tokens(context_tokens)
    node = best.closest
    namespace = best.namespace if node is None else node.namespace
    return Divergence(
        position=position,
        before=list(tokens[max(0, position - context_tokens) : position]),
        prompt=list(tokens[position : position + context_tokens]),
        stored=stored[:context_tokens],
        scope=index.snapshot.namespaces[namespace].scope,
        change=None,
    )


def with_change(
    found: Divergence, index: SnapshotIndex, best: StoredMatch, tokens: Sequence[int]
) -> Divergence:
    """`found`, with what kind of change it is, if the prompt and the closest stored path are equal again after it.

    O(n log n) in the tokens after the divergence, of which `MOST_TOKENS` are compared.
    """
    rest = list(tokens[found.position :])
    # A stored path may have much that the prompt lacks, before it is equal again.
    stored = _Continuation(index, best, rest).tokens(min(MOST_TOKENS, 4 * len(rest) + 4 * best.chunk_tokens))
    blocks = common_blocks(rest, stored, _shingle_tokens(best.chunk_tokens))
    if not blocks:
        return found
    prompt_tokens, stored_tokens = blocks[0].start_one, blocks[0].start_other
    kind = "inserted" if not stored_tokens else "removed" if not prompt_tokens else "replaced"
    change = Change(
        kind=kind,
        prompt_tokens=prompt_tokens,
        stored_tokens=stored_tokens,
        after_tokens=len(rest) - prompt_tokens,
        same_tokens=sum(block.tokens for block in blocks),
    )
    return replace(found, change=change)


class _Continuation:
    """The closest stored path after a divergence: at each fork, the chunk with most in common with the prompt."""

    def __init__(self, index: SnapshotIndex, best: StoredMatch, rest: Sequence[int]) -> None:
        self._index = index
        self._best = best
        size = _shingle_tokens(best.chunk_tokens)
        self._shingles = _shingles(rest[:MOST_TOKENS], size)
        self._size = size

    def tokens(self, most: int) -> list[int]:
        """At most a chunk more than `most` tokens of it; none if the stored path ends at the divergence."""
        node = self._first()
        if node is None:
            return []
        found = node.tokens[self._best.closest_tokens :]
        while len(found) < most:
            namespaces = {node.namespace, self._best.namespace}
            below = [child for i in sorted(namespaces) for child in self._index.children(node, i)]
            node = self._likest(below)
            if node is None:
                break
            found = found + node.tokens
        return found

    def _first(self) -> NodeView | None:
        """Of the chunks that share equally many tokens with the prompt before the divergence, the likest one."""
        best = self._best
        if best.closest is None:
            return None
        above = best.awaits[-1] if best.awaits else best.path[-1] if best.path else None
        shared = best.closest.tokens[: best.closest_tokens]
        siblings = self._index.children(above, best.closest.namespace)
        alike = [
            node
            for node in siblings
            if node is not best.closest and common_tokens(node.tokens, shared) == len(shared)
        ]
        return self._likest([best.closest, *alike])

    def _likest(self, nodes: Collection[NodeView]) -> NodeView | None:
        """The chunk with most shingles of the prompt, then with most hits; the first of equals."""
        candidates = sorted(nodes, key=lambda node: -node.hits)[:_MOST_CANDIDATES]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        return max(candidates, key=lambda node: len(_shingles(node.tokens, self._size) & self._shingles))


def _shingle_tokens(chunk_tokens: int) -> int:
    return min(_SHINGLE_TOKENS, chunk_tokens)


def _shingles(tokens: Sequence[int], size: int) -> set[Shingle]:
    """All runs of `size` tokens."""
    return set(zip(*(tokens[i:] for i in range(size))))
