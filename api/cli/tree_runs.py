"""A snapshot's nodes as a tree of lines: chains without a fork are one branch, alike neighbours one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtrie.api.inspection.snapshot_match import common_tokens
from kvtrie.prefix_tree.snapshot import NodeView, Snapshot

Segment = list[NodeView]
"""Consecutive chunks of one branch that are shown as one line."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain of single children, and what forks off its end."""

    segments: list[Segment]
    children: list[Branch]

    def shared_tokens(self, child: int) -> int:
        """Leading tokens that a child shares with a neighbour: what tells it apart comes after them."""
        mine = self.children[child].segments[0][0].tokens
        beside = [
            self.children[i].segments[0][0].tokens
            for i in (child - 1, child + 1)
            if 0 <= i < len(self.children)
        ]
        return max((common_tokens(mine, tokens) for tokens in beside), default=0)


def branches(snapshot: Snapshot, expand: bool) -> list[tuple[int, list[Branch]]]:
    """Each namespace with the branches that start in it: paths from its root, and orphans.

    A namespace's continuations of another one's paths are in the branches of that other. With `expand`
    every chunk is a segment of its own.
    """
    children: dict[int | None, list[NodeView]] = {}
    for node in snapshot.nodes:
        children.setdefault(node.parent, []).append(node)
    tops: dict[int, list[Branch]] = {i: [] for i in range(len(snapshot.namespaces))}
    # Iterative: a path may have more chunks than Python has stack.
    pending = [(node, tops[node.namespace]) for node in reversed(children.get(None, []))]
    while pending:
        node, siblings = pending.pop()
        chain = [node]
        while len(below := children.get(chain[-1].id, [])) == 1:
            chain.append(below[0])
        branch = Branch(_segments(chain, expand), [])
        siblings.append(branch)
        pending.extend((child, branch.children) for child in reversed(below))
    return list(tops.items())


def _segments(chain: Sequence[NodeView], expand: bool) -> list[Segment]:
    segments: list[Segment] = []
    for node in chain:
        if segments and not expand and _alike(segments[-1][-1], node):
            segments[-1].append(node)
        else:
            segments.append([node])
    return segments


def _alike(one: NodeView, other: NodeView) -> bool:
    """Whether two neighbours may share a line: all that differs is how often and when they were used."""
    return (
        one.namespace == other.namespace
        and one.readers == other.readers
        and list(one.tiers) == list(other.tiers)
        and one.pin == other.pin
        and one.pending == other.pending
    )
