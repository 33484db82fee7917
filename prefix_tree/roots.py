"""The roots of all namespaces: kept while they have nodes, and dropped some time after.

A root is in one of three states:

    filled ... nodes of its namespace are in the tree; kept
    idle ..... no nodes; kept while it is among the last `most_idle` roots that were asked for or lost their
               last node, so that dumps and `explain` still show the namespace
    loose .... no nodes, and not kept here: it lives as long as a caller (a request, a match, a lease) refers to it

A loose root becomes idle when it is asked for, and filled when a node is stored below it. So there is never a
second root of a namespace while a caller refers to the first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.node import Root

ROOT_BYTES = 1024
"""Measured size of one root with its namespace and its places here (CPython 3.11), for the memory figures."""


class Roots:
    """Roots by namespace digest.

    Args:
        make: makes the root of a namespace.
        most_idle: most roots without nodes that are kept.
    """

    def __init__(self, make: Callable[[Namespace], Root], most_idle: int) -> None:
        self._make = make
        self.most_idle = most_idle
        self._kept: dict[bytes, Root] = {}
        """Filled and idle roots."""
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        """Digests of idle roots; the one that was asked for, or lost its last node, most recently is last."""
        self._loose: WeakValueDictionary[bytes, Root] = WeakValueDictionary()

    def of(self, namespace: Namespace) -> Root:
        """The root of a namespace; makes one if there is none."""
        key = namespace.digest
        root = self._kept.get(key)
        if root is None:
            root = self._loose.pop(key, None)
            if root is None:
                root = self._make(namespace)
            self._kept[key] = root
            self._rest(key)
        elif root.nodes == 0:
            self._idle.move_to_end(key)
        return root

    def filled(self, root: Root) -> None:
        """Tells that the first node of a root's namespace was stored."""
        kept = self._kept.setdefault(root.key, root)
        assert kept is root, f"two roots of namespace {root.key.hex()}"
        self._idle.pop(root.key, None)
        self._loose.pop(root.key, None)

    def emptied(self, root: Root) -> None:
        """Tells that the last node of a root's namespace was removed."""
        self._rest(root.key)

    def _rest(self, key: bytes) -> None:
        self._idle[key] = None
        while len(self._idle) > self.most_idle:
            oldest, _ = self._idle.popitem(last=False)
            self._loose[oldest] = self._kept.pop(oldest)

    @property
    def idle(self) -> int:
        """How many roots without nodes are kept."""
        return len(self._idle)

    @property
    def size_bytes(self) -> int:
        """Memory that kept roots take."""
        return len(self._kept) * ROOT_BYTES

    def __iter__(self) -> Iterator[Root]:
        """Filled and idle roots, in the order in which they were made."""
        return iter(self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)
