"""The result of a lookup."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrie.prefix_tree.node import Node, Root


@dataclass(slots=True)
class Match:
    """The longest cached prefix of a token sequence, as one tenant may see it.

    Valid until the tree next changes; `PrefixTree.lease` makes it last.
    """

    root: Root
    """Namespace the request computes in; new chunks go there."""
    path: list[Node]
    """Matched nodes, first chunk first. All are resident in some tier."""
    chain_key: bytes
    """Chunk key of the last matched chunk *in `root`'s own namespace*: what the next key chains to.
    It differs from `path[-1].key` where the path runs through a shared scope."""
    tokens: int
    """Tokens in whole matched chunks."""
    partial: Node | None
    """The chunk that continues the match for some tokens, or None."""
    partial_tokens: int
    """Leading tokens of `partial` that match: to be copied into a private chunk."""
    awaits: Node | None
    """Deepest node beyond `path` that another request is computing right now, or None."""

    @property
    def cached_tokens(self) -> int:
        """Tokens served from the cache: whole chunks plus the partial one."""
        return self.tokens + self.partial_tokens

    @property
    def node(self) -> Node:
        """The deepest matched node: the root when nothing matched."""
        return self.path[-1] if self.path else self.root
