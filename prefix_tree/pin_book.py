"""The book of pins: which there are, which end next, and how many bytes each scope has pinned.

A pin costs its scope every chunk of its path, of a shared scope's part too, and each chunk once, however many of
the scope's pins share it. A chunk costs its size in the tier where it is largest.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

from kvtrie.prefix_tree.held_paths import Pin
from kvtrie.prefix_tree.node import Node


class PinBook:
    """Pins in force. Adding or removing one costs what of its path no other pin of its scope is on."""

    def __init__(self) -> None:
        self.pins: set[Pin] = set()
        self._ending: list[tuple[float, int]] = []
        """A heap of ends and numbers of pins. Those of pins that were removed before their time stay until they
        come up; they name no pin, so that nothing evicted since is kept for them."""
        self._by_number: dict[int, Pin] = {}
        self._number_of: dict[Pin, int] = {}
        """Pins with an end."""
        self._numbers = 0
        self._on: dict[Node, dict[str, int]] = {}
        """Of every pinned chunk, by scope: its pins on exactly this node, and children that its pins are on."""
        self._bytes: Counter[str] = Counter()

    def add(self, pin: Pin) -> None:
        """Takes up a pin on a resident node."""
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
        """Takes out a pin that is there."""
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
        """A chunk's largest size has changed, because it came into a tier or left one; nothing if it has no pin."""
        for scope in self._on.get(node, ()):
            self._bytes[scope] += more_bytes

    def bytes_of(self, scope: str) -> int:
        """What a scope has pinned."""
        return self._bytes.get(scope, 0)

    def bytes_with(self, node: Node) -> int:
        """What the scope of `node` would have pinned with one more pin there."""
        scope = node.root.scope
        size = self.bytes_of(scope)
        while node.depth and scope not in self._on.get(node, ()):
            size += node.largest_bytes
            node = _above(node)
        return size

    @property
    def size_bytes(self) -> int:
        """What all scopes have pinned; a chunk that several have pinned counts for each."""
        return self._bytes.total()

    def by_scope(self) -> dict[str, int]:
        """What each scope has pinned; those that have pinned nothing left out."""
        return dict(self._bytes)


def _above(node: Node) -> Node:
    assert node.parent is not None
    return node.parent
