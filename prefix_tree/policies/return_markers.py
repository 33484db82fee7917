"""Markers: what the learned policy remembers of requests by chunk key, whether their chunks are cached or not."""

from __future__ import annotations

from typing import NamedTuple

from kvtrie.prefix_tree.node import Node
from kvtrie.prefix_tree.policies.return_times import ReturnTimes


class Marker:
    """Left by a request at one chunk or two, until the next request through either of them takes it up."""

    __slots__ = ("chunks", "first", "keys", "parted", "place", "turn")

    def __init__(self, turn: int, chunks: int, place: int | None, parted: int, first: float) -> None:
        self.turn = turn
        """1 for the first request of a conversation, k for the k-th."""
        self.chunks = chunks
        """Length of the request's path."""
        self.place = place
        """Place in `ReturnTimes` that waits for the next turn; None for a marker where requests part."""
        self.parted = parted
        """Requests that have parted at this chunk."""
        self.first = first
        """Time of the first of them, in seconds of the steady clock."""
        self.keys: list[bytes] = []
        """Chunk keys under which it is found."""


class TurnBefore(NamedTuple):
    """The request that the present one may continue."""

    marker: Marker
    depth: int
    """Index of the marker's chunk in the present request's path, from 0."""
    since: float
    """Time of that request, in seconds of the steady clock."""


class ReturnMarkers:
    """Markers by chunk key; where there are too many, the oldest is dropped.

    Args:
        returns: is called when a path is used again, or its marker is dropped.
        limit: most chunk keys with a marker.
    """

    def __init__(self, returns: ReturnTimes, limit: int) -> None:
        self._returns = returns
        self._limit = limit
        self._by_key: dict[bytes, Marker] = {}
        """By chunk key, oldest first."""

    def __contains__(self, node: Node) -> bool:
        return node.key in self._by_key

    def recall(self, path: list[Node], now: float) -> tuple[TurnBefore | None, dict[int, Marker]]:
        """Takes up all markers along a path.

        Returns the deepest that a request left (at the first of its chunks on the path, where it was left at two),
        and by depth those where requests part.
        """
        before: TurnBefore | None = None
        forks: dict[int, Marker] = {}
        for depth, node in enumerate(path):
            marker = self._by_key.get(node.key)
            if marker is None:
                continue
            self._take_up(marker)
            if marker.place is None:
                forks[depth] = marker
            else:
                before = TurnBefore(marker, depth, self._returns.close(marker.place, now, returned=True))
        return before, forks

    def mark(self, node: Node, marker: Marker, now: float) -> None:
        """Leaves a marker at a chunk that has none; may drop the oldest."""
        self._by_key[node.key] = marker
        marker.keys.append(node.key)
        if len(self._by_key) > self._limit:
            oldest = next(iter(self._by_key.values()))
            self._take_up(oldest)
            if oldest.place is not None:
                self._returns.close(oldest.place, now, returned=False)

    def _take_up(self, marker: Marker) -> None:
        for key in marker.keys:
            del self._by_key[key]
