"""The longest prefix of a prompt that a snapshot holds: `PrefixTree.match`, over a snapshot of the tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvtrie.prefix_tree.snapshot import NodeView, Snapshot


@dataclass(frozen=True, slots=True)
class StoredMatch:
    """The part of a prompt that one namespace, and the namespaces it may read, hold."""

    namespace: int
    """The request's namespace, as an index into `Snapshot.namespaces`. Chunks may belong to namespaces it reads."""
    path: tuple[NodeView, ...]
    """Resident chunks that match in full, from the first."""
    partial_tokens: int
    """Leading tokens of one more resident chunk that match."""
    awaits: tuple[NodeView, ...]
    """Chunks of the prompt beyond `path` that are being computed."""
    closest: NodeView | None
    """The chunk after `path` and `awaits` that shares most tokens with the rest of the prompt, or None."""
    closest_tokens: int
    """Number of tokens that it shares."""
    chunk_tokens: int

    @property
    def whole_tokens(self) -> int:
        """Tokens in `path`."""
        return len(self.path) * self.chunk_tokens

    @property
    def tokens(self) -> int:
        """Matched tokens: whole chunks and the partial one."""
        return self.whole_tokens + self.partial_tokens


class SnapshotIndex:
    """A snapshot's nodes by parent. Never changes."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._children: dict[tuple[int | None, int], list[NodeView]] = {}
        for node in snapshot.nodes:
            # A chunk whose parent a store lacks is left out: no prompt can match it.
            if node.parent is not None or node.depth == 1:
                self._children.setdefault((node.parent, node.namespace), []).append(node)

    def children(self, parent: NodeView | None, namespace: int) -> list[NodeView]:
        """Children of `parent` (of the root for None) that belong to a namespace."""
        return self._children.get((None if parent is None else parent.id, namespace), [])

    def match(self, tokens: Sequence[int], namespace: int, readable: Iterable[int] = ()) -> StoredMatch:
        """The longest match of `tokens` that a request in `namespace` gets.

        Paths of `readable` namespaces count, and so do the namespace's own continuations of them.
        """
        best = self._descend(tokens, namespace, [])
        for shared in readable:
            if shared == namespace:
                continue
            through = self._descend(tokens, shared, [])
            found = [through]
            for depth in range(1, len(through.path) + 1):
                if self.children(through.path[depth - 1], namespace):
                    found.append(self._descend(tokens, namespace, list(through.path[:depth])))
            best = max([best, *found], key=_closeness)
        return replace(best, namespace=namespace)

    def _descend(self, tokens: Sequence[int], namespace: int, path: list[NodeView]) -> StoredMatch:
        chunk_tokens = int(self.snapshot.namespaces[namespace].fields["chunk_tokens"])
        # 1. Whole chunks: resident ones, then ones that are being computed.
        awaits: list[NodeView] = []
        while True:
            start = (len(path) + len(awaits)) * chunk_tokens
            chunk = list(tokens[start : start + chunk_tokens])
            above = awaits[-1] if awaits else path[-1] if path else None
            children = self.children(above, namespace)
            child = next((child for child in children if child.tokens == chunk), None)
            if child is None:
                break
            if awaits or not child.tiers:
                if not child.pending:
                    break
                awaits.append(child)
            else:
                path.append(child)
        # 2. Part of one more resident chunk.
        deepest = path[-1] if path else None
        waiting = tokens[len(path) * chunk_tokens :][:chunk_tokens]
        resident = [child for child in self.children(deepest, namespace) if child.tiers]
        partial = max((common_tokens(child.tokens, waiting) for child in resident), default=0)
        # 3. The closest chunk after all that; of equally close ones, the one with most hits.
        closest = max(
            children, key=lambda child: (common_tokens(child.tokens, chunk), child.hits), default=None
        )
        return StoredMatch(
            namespace=namespace,
            path=tuple(path),
            partial_tokens=partial,
            awaits=tuple(awaits),
            closest=closest,
            closest_tokens=0 if closest is None else common_tokens(closest.tokens, chunk),
            chunk_tokens=chunk_tokens,
        )


def reach(match: StoredMatch) -> tuple[int, int]:
    """Sort key of a match, the best last: tokens matched, then chunks that are being computed."""
    return match.tokens, len(match.awaits)


def _closeness(match: StoredMatch) -> tuple[int, int, int, bool]:
    return (*reach(match), match.closest_tokens, match.closest is not None)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    shared = 0
    for left, right in zip(one, other):
        if left != right:
            break
        shared += 1
    return shared
