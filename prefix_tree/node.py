"""Nodes of the trie, and where each one's bytes are.

    Root ── Node ── Node ── Node          one chunk per node; `children` are of the same namespace
              └──── Node (graft)          a tenant's own continuation of a shared scope's path

A node carries per-tier state in `at[tier]`: a `Residence`, or None where the tier does not hold it.
Hits, uses, last use and readers are kept on the deepest node a request touched; an ancestor's are the sum
(or latest) over its subtree, settled upwards when a leaf is evicted. That keeps every touch O(tiers).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, MutableSequence
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Union

from sortedcontainers import SortedKeyList

from kvtrie.prefix_tree.keys import TOKEN_BYTES

if TYPE_CHECKING:
    from kvtrie.prefix_tree.namespace import Namespace

_by_tokens = attrgetter("tokens")

Siblings = MutableSequence["Node"]
"""Children of one namespace, ordered by their token bytes: a plain list while they are few, because that is
small and fast, a `SortedKeyList` beyond, because a list moves half of itself at every change."""

Children = Union["Node", Siblings]
"""An only child is kept without a list: most nodes are links of a chain, and a list each would cost as much as half
a node."""

_FEW = 256


class Residence:
    """One node's bytes in one tier."""

    __slots__ = (
        "children",
        "children_ever",
        "credit",
        "handle",
        "holds",
        "last_use",
        "node",
        "queued_at",
        "size_bytes",
        "stored_at",
        "tier",
        "uses",
    )

    def __init__(self, node: Node, tier: int, handle: object, size_bytes: int, tick: int) -> None:
        self.node = node
        self.tier = tier
        self.handle = handle
        """Names the bytes for the tier's owner: a slot, or the bytes themselves."""
        self.size_bytes = size_bytes
        self.children = 0
        """Children resident in this tier."""
        self.children_ever = 0
        """Children that have been stored below it in this tier, evicted ones included."""
        self.holds = 0
        """Leases and pins on exactly this node."""
        self.uses = 0
        """Requests whose path ended here, or at a descendant that has left this tier since. So a leaf's uses are
        all requests that came through it while it was in this tier, the one that stored it included."""
        self.stored_at = tick
        """Tick of the tree's clock when it came into this tier."""
        self.last_use = tick
        """Tick when it was last leased or stored, or a descendant that has since left this tier."""
        self.queued_at = -1
        """The tick the eviction policy has it queued under, if that queues by ticks; -1 otherwise."""
        self.credit = 0.0
        """The eviction policy's own note; an ancestor's is at least that of every child that was evicted."""

    @property
    def evictable(self) -> bool:
        """Whether it has no resident child in this tier and no hold."""
        return self.children == 0 and self.holds == 0


class Node:
    """One chunk of one path. `tokens` are its `chunk_tokens` tokens as int32le bytes."""

    __slots__ = (
        "at",
        "children",
        "claim",
        "created_seconds",
        "depth",
        "grafts",
        "hits",
        "key",
        "parent",
        "root",
        "tokens",
        "used_seconds",
    )

    def __init__(
        self, parent: Node | None, root: Root, key: bytes, tokens: bytes, tiers: int, now: float
    ) -> None:
        self.parent = parent
        self.root = root
        self.key = key
        self.tokens = tokens
        self.depth: int = parent.depth + 1 if parent is not None else 0
        """Chunks from the root, counting this one."""
        self.children: Children | None = None
        """Same-namespace children: the only one, or all ordered by their token bytes."""
        self.grafts: dict[Root, Children] | None = None
        """Children that belong to another namespace, by that namespace's root."""
        self.at: list[Residence | None] = [None] * tiers
        self.claim: Claim | None = None
        """The claim that is computing this chunk; None once it is resident."""
        self.hits = 0
        """Requests whose deepest reused chunk was this node, or a descendant that has been evicted since."""
        self.created_seconds = now
        """When it was made, on the tree's steady clock."""
        self.used_seconds = now
        """Time of its last use, or of a descendant's that has been evicted since, on the tree's steady clock."""

    @property
    def created_at(self) -> float:
        """`created_seconds` as unix seconds, by the wall clock as it is set now. For people."""
        return self.root.unix_of(self.created_seconds)

    @property
    def last_used_at(self) -> float:
        """`used_seconds` as unix seconds, by the wall clock as it is set now. For people."""
        return self.root.unix_of(self.used_seconds)

    @property
    def largest_bytes(self) -> int:
        """Its size in the tier where it is largest; 0 while it is pending."""
        return max((here.size_bytes for here in self.at if here is not None), default=0)

    @property
    def is_resident(self) -> bool:
        """Whether any tier holds it."""
        return any(self.at)

    def children_for(self, root: Root) -> Children | None:
        """This node's children in the namespace of `root`."""
        if root is self.root:
            return self.children
        return None if self.grafts is None else self.grafts.get(root)

    def find(self, root: Root, tokens: bytes) -> Node | None:
        """The child in `root`'s namespace with exactly these tokens."""
        children = self.children_for(root)
        if children is None:
            return None
        child = children if isinstance(children, Node) else next(_onwards(children, tokens), None)
        return child if child is not None and child.tokens == tokens else None

    def closest(self, root: Root, tokens: bytes) -> tuple[Node | None, int]:
        """The resident child sharing most leading tokens with `tokens`, and how many it shares.

        Token bytes are compared in one fixed order, so the best match is the nearest resident
        neighbour of the insertion point on either side, however many children there are.
        """
        children = self.children_for(root)
        if children is None or not tokens:
            return None, 0
        siblings: Siblings = [children] if isinstance(children, Node) else children
        best, shared = None, 0
        for walk in (_onwards(siblings, tokens), _backwards(siblings, tokens)):
            node = next((child for child in walk if child.is_resident), None)
            if node is not None and (count := common_tokens(node.tokens, tokens)) > shared:
                best, shared = node, count
        return best, shared

    def add(self, child: Node) -> None:
        """Links `child` under this node, in token order."""
        if child.root is self.root:
            self.children = child if self.children is None else _with(self.children, child)
        else:
            if self.grafts is None:
                self.grafts = {}
            others = self.grafts.get(child.root)
            self.grafts[child.root] = child if others is None else _with(others, child)

    def remove(self, child: Node) -> None:
        """Unlinks `child`, which must be linked here."""
        if child.root is self.root:
            assert self.children is not None
            self.children = _without(self.children, child)
            return
        assert self.grafts is not None
        rest = _without(self.grafts[child.root], child)
        if rest is not None:
            self.grafts[child.root] = rest
        else:
            del self.grafts[child.root]
            self.grafts = self.grafts or None

    def all_children(self) -> list[Node]:
        """Every child: of its own namespace first, then grafts."""
        found: list[Node] = []
        for children in (self.children, *(self.grafts or {}).values()):
            if isinstance(children, Node):
                found.append(children)
            elif children is not None:
                found += children
        return found

    def path(self) -> list[Node]:
        """Nodes from the first chunk to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.depth > 0:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


class Claim:
    """Pending nodes of one request, in path order; `PrefixTree.publish` takes them one by one.

    The first request to need a chunk claims a pending node for it, so that one chunk is computed once; later ones
    see `Match.awaits` and wait without holding slots. A claim that is abandoned (cancelled, preempted, failed)
    leaves its unpublished nodes unclaimed: the first waiter to match again finds nothing there and claims them.
    """

    __slots__ = ("nodes",)

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes


class Root(Node):
    """The beginning of a namespace's paths: depth 0, no tokens, never resident, never evicted.

    Args:
        namespace: the namespace.
        tiers: how many tiers the tree has.
        now: seconds of the tree's steady clock.
        unix_of: makes unix seconds of such seconds.
    """

    __slots__ = ("__weakref__", "namespace", "nodes", "unix_of")

    def __init__(
        self, namespace: Namespace, tiers: int, now: float, unix_of: Callable[[float], float] = float
    ) -> None:
        super().__init__(None, self, namespace.digest, b"", tiers, now)
        self.namespace = namespace
        self.unix_of = unix_of
        self.nodes = 0
        """Nodes of this namespace in the tree, pending ones and grafts included."""

    @property
    def root(self) -> Root:
        """Itself. No reference is kept, so that a root that nobody holds is freed at once."""
        return self

    @root.setter
    def root(self, root: Root) -> None:
        assert root is self

    @property
    def scope(self) -> str:
        """The tenant or shared scope whose bytes these are."""
        return self.namespace.scope


def _onwards(siblings: Siblings, tokens: bytes) -> Iterator[Node]:
    """Siblings from `tokens` on, in order."""
    if type(siblings) is list:
        return islice(siblings, bisect_left(siblings, tokens, key=_by_tokens), None)
    # By key, never by position: a SortedKeyList rebuilds its positional index after every change.
    return siblings.irange_key(min_key=tokens)  # type: ignore[attr-defined, no-any-return]


def _backwards(siblings: Siblings, tokens: bytes) -> Iterator[Node]:
    """Siblings before `tokens`, nearest first."""
    if type(siblings) is list:
        place = bisect_left(siblings, tokens, key=_by_tokens)
        return (siblings[i] for i in range(place - 1, -1, -1))
    return siblings.irange_key(max_key=tokens, inclusive=(True, False), reverse=True)  # type: ignore[attr-defined, no-any-return]


def _with(children: Children, child: Node) -> Siblings:
    """`children` and `child`, in order."""
    if isinstance(children, Node):
        return [children, child] if children.tokens < child.tokens else [child, children]
    if type(children) is not list:
        children.add(child)  # type: ignore[attr-defined]
        return children
    insort(children, child, key=_by_tokens)
    return children if len(children) <= _FEW else SortedKeyList(children, key=_by_tokens)


def _without(children: Children, child: Node) -> Children | None:
    """`children` less `child`, which is one of them; None when that leaves none."""
    if children is child:
        return None
    assert not isinstance(children, Node)
    if type(children) is list:
        place = bisect_left(children, child.tokens, key=_by_tokens)
        assert children[place] is child
        del children[place]
    else:
        children.remove(child)
    return children[0] if len(children) == 1 else children


def common_tokens(one: bytes, other: bytes) -> int:
    """How many leading tokens two int32le byte strings share."""
    length = min(len(one), len(other))
    differing = int.from_bytes(one[:length], "little") ^ int.from_bytes(other[:length], "little")
    if differing == 0:
        return length // TOKEN_BYTES
    return ((differing & -differing).bit_length() - 1) // (8 * TOKEN_BYTES)
