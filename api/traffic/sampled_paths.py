"""Blocks of a path that are in a sample, found without looking at every block of every request.

A chunk key names all that is before it. So a stretch of a path is known by the key it ends with, and what was drawn
of it once is drawn of it always: a request over a cached prefix costs a look-up per stretch, and only new stretches
have their keys compared with the threshold, many at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvtrie.prefix_tree import Node
from kvtrie.prefix_tree.keys import KEY_BYTES

STRETCH = 128
"""Blocks per stretch; the last one of a path may be shorter."""
MOST_STRETCHES = 8192
"""Stretches that are remembered; then all are forgotten."""

Path = Sequence[Node] | Sequence[bytes]
"""A path as its nodes, or as their chunk keys."""


class SampledPaths:
    """Draws from the paths of one scope. Not thread-safe."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[bytes, int], list[int]] = {}
        """Hashes drawn from a stretch, by the key it ends with and its length."""
        self._drawn_below = 0
        self._paths: list[list[list[int]]] = []
        """Stretches of each path that was added and not drawn from yet."""
        self._lengths: list[int] = []
        self._fresh: list[list[int]] = []
        """Stretches that nothing was drawn of yet, and the keys of each."""
        self._fresh_keys: list[bytes] = []

    def add(self, path: Path, length: int) -> None:
        """Takes in the first `length` blocks of a path. Its keys are read now, while they are in caches."""
        stretches, mine = self._stretches, []
        has_nodes = not isinstance(path[0], bytes)
        for start in range(0, length, STRETCH):
            end = min(start + STRETCH, length)
            last: Any = path[end - 1]
            name = (last.key if has_nodes else last, end - start)
            stretch = stretches.get(name)
            if stretch is None:
                stretch = stretches[name] = []
                new: Any = path[start:end]
                self._fresh.append(stretch)
                self._fresh_keys.append(b"".join([node.key for node in new] if has_nodes else new))
            mine.append(stretch)
        self._paths.append(mine)
        self._lengths.append(length)

    def draw(self, threshold: int) -> tuple[list[list[int]], list[int]]:
        """For each path added since the last draw: its blocks' hashes below `threshold` in path order, perhaps some
        above it; and its length.

        A block's hash is half of its chunk key. `threshold` must never rise.
        """
        if self._fresh:
            ends = np.cumsum([len(keys) // KEY_BYTES for keys in self._fresh_keys])
            hashes = np.frombuffer(b"".join(self._fresh_keys), "<u8")[::2]
            drawn = np.flatnonzero(hashes <= np.uint64(threshold - 1))
            places = np.searchsorted(ends, drawn, side="right").tolist()
            for place, block in zip(places, hashes[drawn].tolist()):
                self._fresh[place].append(block)
            self._fresh, self._fresh_keys = [], []
        found = [[block for stretch in mine for block in stretch] for mine in self._paths], self._lengths
        self._paths, self._lengths = [], []
        self._drawn_below = self._drawn_below or threshold
        # What is remembered was drawn below an older threshold, and is carried along for nothing.
        if len(self._stretches) > MOST_STRETCHES or threshold < self._drawn_below // 4:
            self._stretches.clear()
            self._drawn_below = threshold
        return found
