"""A small forest to grow by hand: chunks of two tokens, every scope a word, every chunk one byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from kvtrie.prefix_tree import Evicted, Match, Namespace, Node, PrefixTree, Root, Tier

DEVICE, HOST = 0, 1


class Forest:
    """A tree of two tiers with clocks moved by hand: `now` goes on, `set_by` is how far the wall clock is off."""

    def __init__(self, chunk_tokens: int = 2, capacity_bytes: int = 1_000, **options: Any) -> None:
        self.now = 1000.0
        self.set_by = 0.0
        self.tree = PrefixTree(
            chunk_tokens,
            [Tier("device", capacity_bytes), Tier("host", capacity_bytes)],
            clock=lambda: self.now + self.set_by,
            steady=lambda: self.now,
            **options,
        )

    @staticmethod
    def bytes(tokens: Iterable[int]) -> bytes:
        return np.asarray(list(tokens), "<i4").tobytes()

    def root(self, scope: str) -> Root:
        return self.tree.root(Namespace(scope, chunk_tokens=self.tree.chunk_tokens))

    def match(self, scope: str, tokens: Iterable[int], readable: Sequence[str] = ()) -> Match:
        return self.tree.match(self.root(scope), self.bytes(tokens), [self.root(name) for name in readable])

    def cached(self, scope: str, tokens: Iterable[int], readable: Sequence[str] = ()) -> int:
        return self.match(scope, tokens, readable).cached_tokens

    def store(
        self,
        scope: str,
        tokens: Sequence[int],
        readable: Sequence[str] = (),
        tier: int = DEVICE,
        size_bytes: int = 1,
    ) -> list[Node]:
        """Stores the whole chunks of `tokens` that the tree lacks; returns the whole path."""
        match = self.match(scope, tokens, readable)
        missing = len(tokens) // self.tree.chunk_tokens - len(match.path)
        handles = [f"{tier}:{match.tokens}+{i}" for i in range(missing)]
        return match.path + self.tree.insert_path(match, self.bytes(tokens), tier, handles, size_bytes)

    def copy(self, node: Node, tier: int, size_bytes: int = 1) -> None:
        """Stores an existing node in one more tier."""
        assert node.parent is not None
        self.tree.insert(node.parent, node.root, node.key, node.tokens, tier, "copy", size_bytes)

    def evict(self, tier: int, size_bytes: int) -> list[Node]:
        gone: list[Evicted] = self.tree.evict(tier, size_bytes)
        return [evicted.node for evicted in gone]


@pytest.fixture
def forest() -> Forest:
    return Forest()


@pytest.fixture
def make_forest() -> type[Forest]:
    return Forest
