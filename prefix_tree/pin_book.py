"""The book of pins: all pins in force, the ones that end next, and the bytes that each scope has pinned.

A pin costs its scope every chunk of its path, of a shared scope's part too, and each chunk once, however many of
the scope's pins share it. A chunk costs its size in the tier where it is largest.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

from kvtrie.prefix_tree.held_paths import Pin
from kvtrie.prefix_tree.node import Node


class PinBook:
    """Pins in force. Adding or removing one is O(chunks of its path that no other pin of its scope is on)."""

    def __init__(self) -> None:
        self.pins: set[Pin] = set()
        self._ending: list[tuple[float, int]] = []
        """A heap of ends and numbers of pins. Entries of pins that were removed early stay until they reach the
        front; they are numbers only, so they keep no evicted node alive."""
        self._by_number: dict[int, Pin] = {}
        self._number_of: dict[Pin, int] = {}
        """Number of each pin with an end."""
        self._numbers = 0
        self._on: dict[Node, dict[str, int]] = {}
        """For every pinned chunk, by scope: the scope's pins on exactly this node, plus children that its pins are
        on."""
        self._bytes: Counter[str] = Counter()

    def add(self, pin: Pin) -> None:
        """Adds a pin on a resident node."""
        self.pins.add(pin)
        if pin.ends_seconds is not None:
            self._numbers += 1
            self._by_number[self._numbers], self._number_of[pin] = pin, self._numbers
            heappush(self._ending, (pin.ends_seconds, self._numbers))
        scope, node = pin.node.root.scope, pin.node
        while node.depth:
            on = self._on.setdefault(node, {})
            on[scope] = on.get(scope, 0) + 1
            if on[scope] > 1:
                return
            self._bytes[scope] += node.largest_bytes
            node = _above(node)

    def remove(self, pin: Pin) -> None:
        """Removes a pin that is in the book."""
        self.pins.remove(pin)
        number = self._number_of.pop(pin, None)
        if number is not None:
            del self._by_number[number]
            if len(self._ending) > 2 * len(self._by_number) + 64:
                self._ending = [entry for entry in self._ending if entry[1] in self._by_number]
                heapify(self._ending)
        scope, node = pin.node.root.scope, pin.node
        while node.depth:
            on = self._on[node]
            on[scope] -= 1
            if on[scope]:
                return
            del on[scope]
            if not on:
                del self._on[node]
            self._bytes[scope] -= node.largest_bytes
            if not self._bytes[scope]:
                del self._bytes[scope]
            node = _above(node)

    def over(self, now: float) -> Pin | None:
        """A pin whose time is over at `now`, seconds of the tree's steady clock; None where there is none."""
        ending = self._ending
        while ending and ending[0][0] <= now:
            pin = self._by_number.get(ending[0][1])
            if pin is not None:
                return pin
            heappop(ending)
        return None

    def resized(self, node: Node, more_bytes: int) -> None:
        """Updates the bytes for a chunk whose largest size has changed, as it was stored in a tier or evicted from
        one."""
        for scope in self._on.get(node, ()):
            self._bytes[scope] += more_bytes

    def bytes_of(self, scope: str) -> int:
        """Bytes that a scope has pinned."""
        return self._bytes.get(scope, 0)

    def bytes_with(self, node: Node) -> int:
        """Bytes that the scope of `node` would have pinned with one more pin on it."""
        scope = node.root.scope
        size = self.bytes_of(scope)
        while node.depth and scope not in self._on.get(node, ()):
            size += node.largest_bytes
            node = _above(node)
        return size

    @property
    def size_bytes(self) -> int:
        """Bytes that all scopes have pinned; a chunk counts once for each scope that has pinned it."""
        return self._bytes.total()

    def by_scope(self) -> dict[str, int]:
        """Bytes that each scope has pinned; scopes without pins are left out."""
        return dict(self._bytes)


def _above(node: Node) -> Node:
    assert node.parent is not None
    return node.parent
