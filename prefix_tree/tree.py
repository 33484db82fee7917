"""The prefix tree: match, claim, insert, evict; leases and pins are in `holds.py`. Structure and book-keeping only.

A node's bytes belong to whoever owns the tier (the device pool, a host store); the tree knows them by
an opaque handle. Who owns a handle when:

    taken from the pool ......... the request that took it   (booked with `Tier.reserve`)
    insert / publish ............ the tree, if the returned node carries this handle; otherwise somebody
                                  stored the chunk first and the handle is still the request's
    evict ....................... the caller again, to free or demote

Not thread-safe: its owner (engine or sidecar) calls it from one thread or under one lock. Any thread may call
`root` and `has_root`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from math import inf
from typing import NamedTuple

from xxhash import xxh3_128_digest

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.held_paths import Lease, Pin
from kvtrie.prefix_tree.holds import Holds
from kvtrie.prefix_tree.keys import TOKEN_BYTES, Digest, chain_key
from kvtrie.prefix_tree.match import Match
from kvtrie.prefix_tree.matching import Matching
from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.node import Claim, Node, Residence, Root
from kvtrie.prefix_tree.roots import ROOT_BYTES, Roots
from kvtrie.prefix_tree.tier import Tier
from kvtrie.prefix_tree.tombstones import Tombstone, Tombstones

_SET_SECONDS = 0.1
"""A wall clock that is off by more than this was set; less is drift."""
REMEMBERED_BYTES = 16 << 20
"""Default of `PrefixTree(remembered_bytes=...)`."""


class Evicted(NamedTuple):
    """A chunk that left a tier; the caller now owns `handle`."""

    node: Node
    handle: object
    size_bytes: int


class PrefixTree:
    """A forest of chunk paths, one root per namespace, over one or more tiers (0 is the fastest).

    Args:
        chunk_tokens: tokens per chunk.
        tiers: book-keeping of each tier.
        digest: hash behind chunk keys; collisions cost speed, never correctness.
        clock: unix seconds, for what people read. It may be set back.
        steady: seconds of a clock that is never set; every lifetime and age follows it.
        tombstones_per_scope: how many evictions each scope remembers.
        remembered_bytes: memory for what was evicted: half for tombstones of all scopes together, half for roots of
            namespaces without nodes.
        pin_budget_bytes: most bytes each scope may pin; None for no limit.

    Raises:
        InputError: `chunk_tokens` below one, or no tier.
    """

    def __init__(
        self,
        chunk_tokens: int,
        tiers: Sequence[Tier],
        *,
        digest: Digest = xxh3_128_digest,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        tombstones_per_scope: int = 1024,
        remembered_bytes: int = REMEMBERED_BYTES,
        pin_budget_bytes: int | None = None,
    ) -> None:
        if chunk_tokens < 1:
            raise InputError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        if not tiers:
            raise InputError("a tree needs at least one tier")
        self.chunk_tokens = chunk_tokens
        self.tiers = list(tiers)
        self.clock = clock
        self._unix_less_steady = inf
        """Add it to steady seconds to get unix seconds; renewed when the wall clock was set."""
        self.tombstones = Tombstones(tombstones_per_scope, remembered_bytes // 2)
        self.evictions: Counter[str] = Counter()
        """Evicted chunks by reason."""
        self._holds = Holds(self.tiers, steady, pin_budget_bytes)
        self._pin_book = self._holds.pin_book
        self.leases: Set[Lease] = self._holds.leases
        self.pins: Set[Pin] = self._holds.pins
        """Pins in force, and those whose time is over that nothing has run into yet."""
        self._digest = digest
        self._roots = Roots(self._new_root, remembered_bytes // 2 // ROOT_BYTES)
        self._index: dict[bytes, Node] = {}
        self._collided: set[Node] = set()
        """Nodes that are not in the index, because another node has their key."""
        self._matching = Matching(self._index, digest, chunk_tokens)
        self._untold: list[list[Evicted]] = [[] for _ in tiers]
        """By tier, chunks that an `evict` took out and could not return, because it was interrupted."""
        for number, tier in enumerate(self.tiers):
            tier.serve(partial(self._residences, number))

    # ---- reading

    @property
    def steady(self) -> Callable[[], float]:
        """Seconds of a clock that is never set."""
        return self._holds.steady

    @steady.setter
    def steady(self, steady: Callable[[], float]) -> None:
        self._holds.steady = steady

    def root(self, namespace: Namespace) -> Root:
        """The root of a namespace: the same object as long as it has a node below it, or somebody refers to it.

        This and `has_root` may be called in any thread, whatever the tree's owner does meanwhile.
        """
        return self._roots.of(namespace)

    def has_root(self, root: Root) -> bool:
        """Whether a root is one of this tree."""
        return self._roots.has(root)

    def _new_root(self, namespace: Namespace) -> Root:
        return Root(namespace, len(self.tiers), self._holds.steady(), self.unix_of)

    def roots(self) -> list[Root]:
        """The root of every namespace that has a node, and of the last few that have none: see `roots.py`."""
        return list(self._roots)

    def unix_of(self, steady_seconds: float) -> float:
        """Unix seconds, by the wall clock as it is set now, of a time on the steady clock.

        A time has the same unix seconds whenever it is asked for, until the wall clock is set.
        """
        before = self._holds.steady()
        difference = self.clock() - before
        # Time that passed between the two readings does not mean that the clock was set.
        if abs(difference - self._unix_less_steady) > _SET_SECONDS + self._holds.steady() - before:
            self._unix_less_steady = difference
        return steady_seconds + self._unix_less_steady

    def pinned_bytes(self, scope: str) -> int:
        """Bytes that a scope has pinned: each chunk once, at its size in the tier where it is largest."""
        return self._pin_book.bytes_of(scope)

    def figures(self) -> dict[str, int]:
        """Counts and bytes of namespaces, tombstones and pins: the memory besides chunks."""
        return {
            "namespaces": len(self._roots),
            "namespace_bytes": self._roots.size_bytes,
            "tombstones": len(self.tombstones),
            "tombstone_bytes": self.tombstones.size_bytes,
            "pins": len(self.pins),
            "pinned_bytes": self._pin_book.size_bytes,
        }

    def __len__(self) -> int:
        """Nodes, pending ones included, roots not."""
        return len(self._index) + len(self._collided)

    def nodes(self) -> list[Node]:
        """Every node, in no order; roots left out."""
        return [*self._index.values(), *self._collided]

    def _residences(self, tier: int) -> Iterator[Residence]:
        return (here for node in self.nodes() if (here := node.at[tier]) is not None)

    def walk(self) -> Iterator[Node]:
        """Every node, depth first, children in token order; roots left out."""
        stack = [child for root in reversed(self.roots()) for child in reversed(root.all_children())]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.all_children()))

    def match(self, root: Root, tokens: bytes, readable: Iterable[Root] = ()) -> Match:
        """The longest cached prefix of `tokens` (int32le bytes) that `root`'s tenant may see.

        Every node on the path was compared token by token. Paths of `readable` shared scopes count,
        and so do the tenant's own continuations of them. Pass all tokens but the last: a hit must leave
        one token to compute. Changes nothing.
        """
        return self._matching.longest(root, tokens, readable)

    def chain_key(self, namespace: bytes, tokens: bytes, chunks: int) -> bytes:
        """Chunk key of the `chunks`-th whole chunk of `tokens` in a namespace; its digest for none."""
        return chain_key(namespace, tokens, chunks, self.chunk_tokens, self._digest)

    def next_key(self, key: bytes, chunk: bytes) -> bytes:
        """Chunk key of `chunk` where it follows the chunk (or namespace) with `key`."""
        return self._digest(key + chunk)

    # ---- holding

    def lease(self, match: Match) -> Lease:
        """Holds a match's path until `release`, and counts the request: a hit, and a use of the path.

        O(tiers), and a walk up the path in each tier that does not hold its last chunk.
        """
        return self._holds.lease(match)

    def lease_node(self, node: Node, uses: int = 0) -> Lease:
        """Holds the path to `node` without counting a hit; counts as `uses` uses, one if it is for a request."""
        return self._holds.lease_node(node, uses)

    def extend(self, lease: Lease, node: Node) -> None:
        """Moves a lease, and the use it counts for, to another node of the tree, which must be resident."""
        self._holds.extend(lease, node)

    def release(self, lease: Lease) -> None:
        """Ends a lease.

        Raises:
            KeyError: the lease has ended already.
        """
        self._holds.release(lease)

    def pin(self, node: Node, name: str = "", seconds: float | None = None) -> Pin:
        """Holds the path to `node` until `unpin`, or for so many `seconds` of the steady clock.

        O(chunks of the path that no pin of its scope is on), and O(log pins).

        Raises:
            InputError: `node` is a root or pending: there is nothing to hold; or `seconds` is not above 0.
            PinBudgetExceeded: the scope would pin more than `pin_budget_bytes`.
        """
        return self._holds.pin(node, name, seconds)

    def unpin(self, pin: Pin) -> None:
        """Ends a pin; a pin that has expired already is fine."""
        self._holds.unpin(pin)

    def expire_pins(self) -> None:
        """Ends every pin whose time is over. O(log pins) for each of these."""
        self._holds.expire_pins()

    # ---- growing

    def claim(self, match: Match, tokens: bytes) -> Claim:
        """Claims every whole chunk of `tokens` beyond the match, as pending nodes. The caller computes
        and `publish`es them in order, holding a lease on the match and extending it to each node it
        publishes; `abandon` gives up the rest.
        """
        assert match.awaits is None, "a request that must wait claims nothing"
        claim, parent, key = Claim([]), match.node, match.chain_key
        token_bytes_per_chunk, now = self.chunk_tokens * TOKEN_BYTES, self._holds.steady()
        for end in range(
            (len(match.path) + 1) * token_bytes_per_chunk, len(tokens) + 1, token_bytes_per_chunk
        ):
            chunk = tokens[end - token_bytes_per_chunk : end]
            if parent is match.node and parent.find(match.root, chunk) is not None:
                # The match left the last token out, so it could not reach a last chunk that is in the tree.
                break
            key = self._digest(key + chunk)
            parent = self._attach(parent, match.root, key, chunk, now)
            parent.claim = claim
            claim.nodes.append(parent)
        return claim

    def publish(self, claim: Claim, tier: int, handle: object, size_bytes: int) -> Node:
        """Stores the next chunk of a claim; its parent must be resident in `tier`."""
        node = claim.nodes.pop(0)
        assert node.parent is not None
        stored = self.insert(node.parent, node.root, node.key, node.tokens, tier, handle, size_bytes)
        if claim.nodes:
            # Another node than the claimed one, if somebody else stored this chunk and it was evicted since.
            claim.nodes[0].parent = stored
        return stored

    def abandon(self, claim: Claim) -> None:
        """Gives up the unpublished nodes of a claim; waiters match again, miss them and may claim them."""
        for node in reversed(claim.nodes):
            if node.claim is claim:
                node.claim = None
                self._detach_if_empty(node)
        claim.nodes.clear()

    def insert(
        self, parent: Node, root: Root, key: bytes, chunk: bytes, tier: int, handle: object, size_bytes: int
    ) -> Node:
        """Stores one whole chunk below `parent`, in the namespace of `root`.

        Returns the node of this chunk. If its handle is not the one passed, another request stored the chunk
        first, and the handle passed is still the caller's.
        """
        node = self._store(parent, root, key, chunk, tier, handle, size_bytes, self._holds.steady())
        residence = node.at[tier]
        assert residence is not None
        self.tiers[tier].settle(residence)
        return node

    def insert_path(
        self, match: Match, tokens: bytes, tier: int, handles: Sequence[object], size_bytes: int
    ) -> list[Node]:
        """Stores the whole chunks of `tokens` beyond a match, `size_bytes` each, as `insert` would one by one.

        For replaying traces and for tests: an engine publishes chunks one by one.
        """
        nodes: list[Node] = []
        parent, key, root = match.node, match.chain_key, match.root
        token_bytes_per_chunk, now = self.chunk_tokens * TOKEN_BYTES, self._holds.steady()
        end = (len(match.path) + 1) * token_bytes_per_chunk
        for place, handle in enumerate(handles):
            chunk = tokens[end - token_bytes_per_chunk : end]
            key = self._digest(key + chunk)
            parent = self._store(parent, root, key, chunk, tier, handle, size_bytes, now)
            nodes.append(parent)
            end += token_bytes_per_chunk
            if parent.children is None and parent.grafts is None:
                # A new node has no children: the rest of the path is one new chain.
                rest, left = tokens[end - token_bytes_per_chunk :], handles[place + 1 :]
                nodes += self._store_chain(parent, key, rest, tier, left, size_bytes)
                break
        if nodes:
            residence = nodes[-1].at[tier]
            assert residence is not None
            self.tiers[tier].settle(residence)
        return nodes

    def _store_chain(
        self, node: Node, key: bytes, tokens: bytes, tier: int, handles: Sequence[object], size_bytes: int
    ) -> list[Node]:
        """Stores a chain of chunks below a node without children, as `_store` would one by one."""
        root, now, tiers = node.root, node.created_seconds, len(self.tiers)
        above = node.at[tier]
        assert above is not None
        digest, index, token_bytes_per_chunk = self._digest, self._index, self.chunk_tokens * TOKEN_BYTES
        tombstones = self.tombstones if self.tombstones else None
        self._holds.tick = tick = self._holds.tick + 1
        nodes, end = [], 0
        for handle in handles:
            end += token_bytes_per_chunk
            chunk = tokens[end - token_bytes_per_chunk : end]
            key = digest(key + chunk)
            child = Node(node, root, key, chunk, tiers, now)
            node.children = child
            if index.setdefault(key, child) is not child:
                self._collided.add(child)
            above.children = above.children_ever = 1
            child.at[tier] = above = Residence(child, tier, handle, size_bytes, tick)
            if tombstones is not None:
                tombstones.discard(root.scope, key)
            node = child
            nodes.append(child)
        root.nodes += len(nodes)
        self.tiers[tier].entered(root.scope, len(nodes), len(nodes) * size_bytes)
        return nodes

    def _store(
        self,
        parent: Node,
        root: Root,
        key: bytes,
        chunk: bytes,
        tier: int,
        handle: object,
        size_bytes: int,
        now: float,
    ) -> Node:
        above = parent.at[tier]
        assert parent.depth == 0 or above is not None, "tiers are prefix-closed"
        node = None if parent.children is None and parent.grafts is None else parent.find(root, chunk)
        if node is None:
            node = self._attach(parent, root, key, chunk, now)
        elif node.at[tier] is not None:
            return node
        node.claim = None
        holds = self._holds
        holds.tick = tick = holds.tick + 1
        residence = Residence(node, tier, handle, size_bytes, tick)
        self.tiers[tier].entered(root.scope, 1, size_bytes)
        if self.pins:
            self._pin_book.resized(node, max(0, size_bytes - node.largest_bytes))
        node.at[tier] = residence
        if above is not None:
            above.children += 1
            above.children_ever += 1
        if self.tombstones:
            self.tombstones.discard(root.scope, key)
        return node

    def _attach(self, parent: Node, root: Root, key: bytes, chunk: bytes, now: float) -> Node:
        node = Node(parent, root, key, chunk, len(self.tiers), now)
        parent.add(node)
        if self._index.setdefault(key, node) is not node:
            self._collided.add(node)
        root.nodes += 1
        if root.nodes == 1:
            self._roots.filled(root)
        return node

    # ---- shrinking

    def evict(
        self, tier: int, size_bytes: int, reason: str = "least recently used", scope: str | None = None
    ) -> list[Evicted]:
        """Takes leaves out of a tier until `size_bytes` are freed or no more leaves may be evicted.

        With `scope`, which must have a quota in that tier, only chunks of that scope are evicted.
        Returns the evicted chunks in order; the caller owns their handles. An interrupted call loses none:
        `untold`, or the next call for this tier, returns the chunks it took out.

        Raises:
            InputError: `scope` has no quota in that tier.
        """
        if self.pins:
            self.expire_pins()
        evicted, place, now = self._untold[tier], self.tiers[tier], self._holds.steady()
        before = len(evicted)
        freed = sum(chunk.size_bytes for chunk in evicted) if evicted else 0
        try:
            while freed < size_bytes and (residence := place.victim(scope)) is not None:
                above = self._leave(residence, place, reason, now)
                evicted.append(Evicted(residence.node, residence.handle, residence.size_bytes))
                freed += residence.size_bytes
                if above is not None:
                    place.settle(above)
        except BaseException:
            place.settle_all()
            raise
        finally:
            if evicted:
                self.evictions[reason] += len(evicted) - before
        if evicted:
            self._untold[tier] = []
        return evicted

    def untold(self, tier: int) -> list[Evicted]:
        """Chunks that an interrupted `evict` took out of a tier; the caller owns the handles from here on."""
        evicted, self._untold[tier] = self._untold[tier], []
        return evicted

    def can_free(self, tier: int, size_bytes: int) -> bool:
        """Whether `evict` could free `size_bytes`. Changes nothing, except that pins whose time is over end.

        O(chunks under leases), and O(chunks under pins) where pins decide.
        """
        if self.pins:
            self.expire_pins()
        may_stay = self.tiers[tier].used_bytes - size_bytes
        return may_stay >= 0 and self._holds.hold_at_most(tier, may_stay)

    def held_nodes(self, tier: int) -> set[Node]:
        """Every chunk of a tier that a lease or a pin holds. O(such chunks)."""
        if self.pins:
            self.expire_pins()
        return self._holds.nodes_of(tier)

    def _leave(self, residence: Residence, tier: Tier, reason: str, now: float) -> Residence | None:
        """Takes a leaf out of the tier. Returns its parent's residence there, to be settled once the tree is
        whole."""
        node, number = residence.node, residence.tier
        tier.left(node.root.scope, residence.size_bytes)
        node.at[number] = None
        if self.pins:
            # A pinned chunk can be a leaf to evict: it was stored in this tier after the pin, which holds it in
            # another.
            self._pin_book.resized(node, min(0, node.largest_bytes - residence.size_bytes))
        parent = node.parent
        assert parent is not None
        if node.used_seconds > parent.used_seconds:
            parent.used_seconds = node.used_seconds
        above = parent.at[number]
        if above is not None:
            above.children -= 1
            above.uses += residence.uses
            if residence.last_use > above.last_use:
                above.last_use = residence.last_use
            if residence.credit > above.credit:
                above.credit = residence.credit
        if self.tombstones.per_scope:
            self.tombstones.add(node.root.scope, Tombstone(node.key, node.depth, tier.name, now, reason))
        self._detach_if_empty(node)
        return above

    def _detach_if_empty(self, node: Node) -> None:
        if node.claim is not None or node.is_resident:
            return
        if node.children is not None or node.grafts is not None:
            # Somebody else stored a claimed chunk, and it was evicted before the claimant reached it: the claim of
            # the pending nodes below covers it again.
            node.claim = node.all_children()[0].claim
            return
        parent = node.parent
        assert parent is not None
        parent.remove(node)
        parent.hits += node.hits
        if node.used_seconds > parent.used_seconds:
            parent.used_seconds = node.used_seconds
        if self._index.get(node.key) is node:
            del self._index[node.key]
        else:
            self._collided.remove(node)
        root = node.root
        root.nodes -= 1
        if root.nodes == 0:
            self._roots.emptied(root)
