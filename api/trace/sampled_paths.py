"""Which blocks of a path are in a sample, without looking at every block of every request.

A chunk key names all that is before it. So a stretch of a path is known by the key it ends with, and what was drawn
of it once is drawn of it always: a request over a cached prefix costs a look-up per stretch, and only new stretches
have their keys compared with the threshold, many at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kvtrie.prefix_tree import Node

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
        """Hashes drawn of a stretch, by the key it ends with and its length."""
        self._drawn_below = 0

    def draw(self, paths: Iterable[tuple[Path, int]], threshold: int) -> list[list[int]]:
        """Of each path's first so many blocks, the hashes below `threshold` in path order; perhaps some above it.

        A block's hash is half of its chunk key. `threshold` must never rise.
        """
        # What is remembered was drawn below an older threshold, and is carried along for nothing.
        if len(self._stretches) > MOST_STRETCHES or threshold < self._drawn_below // 4:
            self._stretches.clear()
        if not self._stretches:
            self._drawn_below = threshold
        stretches = self._stretches
        new_keys: list[bytes] = []
        fresh: list[list[int]] = []
        ends: list[int] = []
        found: list[list[list[int]]] = []
        for path, length in paths:
            mine = []
            has_nodes = length > 0 and not isinstance(path[0], bytes)
            for start in range(0, length, STRETCH):
                end = min(start + STRETCH, length)
                last: Any = path[end - 1]
                name = (last.key if has_nodes else last, end - start)
                stretch = stretches.get(name)
                if stretch is None:
                    stretch = stretches[name] = []
                    new: Any = path[start:end]
                    new_keys += [node.key for node in new] if has_nodes else new
                    fresh.append(stretch)
                    ends.append(len(new_keys))
                if stretch or fresh:
                    mine.append(stretch)
            found.append(mine)
        if fresh:
            hashes = np.frombuffer(b"".join(new_keys), "<u8")[::2]
            drawn = np.flatnonzero(hashes <= np.uint64(threshold - 1))
            places = np.searchsorted(ends, drawn, side="right").tolist()
            for place, block in zip(places, hashes[drawn].tolist()):
                fresh[place].append(block)
        return [[block for stretch in mine for block in stretch] if mine else [] for mine in found]
