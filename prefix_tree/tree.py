"""The prefix tree: match, lease, claim, insert, pin, evict. Structure and book-keeping only.

A node's bytes belong to whoever owns the tier (the device pool, a host store); the tree knows them by
an opaque handle. Who owns a handle when:

    taken from the pool ......... the request that took it   (booked with `Tier.reserve`)
    insert / publish ............ the tree, if the returned node carries this handle; otherwise somebody
                                  stored the chunk first and the handle is still the request's
    evict ....................... the caller again, to free or demote

Not thread-safe: its owner (engine or sidecar) calls it from one thread or under one lock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from math import inf
from typing import NamedTuple

from xxhash import xxh3_128_digest

from kvtrie.prefix_tree.claims import Claim
from kvtrie.prefix_tree.errors import InputError, PinBudgetExceeded
from kvtrie.prefix_tree.holds import Lease, Pin, held_bytes, residences_to_hold
from kvtrie.prefix_tree.keys import TOKEN_BYTES, Digest, chain_key
from kvtrie.prefix_tree.match import Match
from kvtrie.prefix_tree.matching import Matching
from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.node import Node, Residence, Root
from kvtrie.prefix_tree.pin_book import PinBook
from kvtrie.prefix_tree.roots import ROOT_BYTES, Roots
from kvtrie.prefix_tree.tier import Tier
from kvtrie.prefix_tree.tombstones import Tombstone, Tombstones

_SET_SECONDS = 0.1
"""A wall clock that is off by more than this was set; less is drift."""
REMEMBERED_BYTES = 16 << 20
"""Memory for what has left a tree, unless it is told otherwise."""


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
        remembered_bytes: memory for what has left: half for tombstones of all scopes together, half for roots of
            namespaces that hold nothing.
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
        self.steady = steady
        self._unix_less_steady = inf
        """What makes unix seconds of the steady clock's, as of the last time the wall clock was seen to be set."""
        self.tombstones = Tombstones(tombstones_per_scope, remembered_bytes // 2)
        self.evictions: Counter[str] = Counter()
        """Evicted chunks by reason."""
        self.leases: set[Lease] = set()
        self._pin_book = PinBook()
        self.pins: Set[Pin] = self._pin_book.pins
        """Pins in force, and those whose time is over that nothing has run into yet."""
        self._pin_budget_bytes = pin_budget_bytes
        self._digest = digest
        self._roots = Roots(self._new_root, remembered_bytes // 2 // ROOT_BYTES)
        self._index: dict[bytes, Node] = {}
        self._collided: set[Node] = set()
        """Nodes that are not in the index, because another node has their key."""
        self._matching = Matching(self._index, digest, chunk_tokens)
        self._tick = 0
        self._untold: list[list[Evicted]] = [[] for _ in tiers]
        """By tier, what an `evict` took out that was interrupted before it could return it."""
        for number, tier in enumerate(self.tiers):
            tier.serve(partial(self._residences, number))

    # ---- reading

    def root(self, namespace: Namespace) -> Root:
        """The root of a namespace: the same object for as long as anybody holds it, or a node is below it."""
        return self._roots.of(namespace)

    def _new_root(self, namespace: Namespace) -> Root:
        return Root(namespace, len(self.tiers), self.steady(), self.unix_of)

    def roots(self) -> list[Root]:
        """The root of every namespace that has a node, and of the last few that have none: see `roots.py`."""
        return list(self._roots)

    def unix_of(self, steady_seconds: float) -> float:
        """Unix seconds, by the wall clock as it is set now, of a time on the steady clock.

        A time has the same unix seconds whenever it is asked for, until the wall clock is set.
        """
        before = self.steady()
        difference = self.clock() - before
        # What passed between the readings is no setting of the clock.
        if abs(difference - self._unix_less_steady) > _SET_SECONDS + self.steady() - before:
            self._unix_less_steady = difference
        return steady_seconds + self._unix_less_steady

    def pinned_bytes(self, scope: str) -> int:
        """What a scope has pinned, each chunk once, in the tier where it is largest."""
        return self._pin_book.bytes_of(scope)

    def figures(self) -> dict[str, int]:
        """What is kept besides chunks: namespaces, tombstones and pins, each with its bytes."""
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
        lease = self.lease_node(match.node, uses=1)
        if match.cached_tokens:
            (match.partial if match.partial is not None else match.node).hits += 1
        return lease

    def lease_node(self, node: Node, uses: int = 0) -> Lease:
        """Holds the path to `node` without counting a hit; counts as `uses` uses, one if it is for a request."""
        held = residences_to_hold(node)
        if uses:
            for residence in held:
                residence.uses += uses
                tier = self.tiers[residence.tier]
                try:
                    tier.policy.used(residence, self._tick + 1)
                except Exception as error:
                    tier.give_up_policy(error)
        self._hold(node, held)
        lease = Lease(node, held, uses)
        self.leases.add(lease)
        return lease

    def extend(self, lease: Lease, node: Node) -> None:
        """Moves a lease, and the use it counts for, to another node of the tree, which must be resident."""
        held = residences_to_hold(node)
        self._hold(node, held)
        for residence in held:
            residence.uses += lease.uses
        for residence in lease.held:
            residence.uses -= lease.uses
        left, lease.node, lease.held = lease.held, node, held
        self._unhold(left)

    def release(self, lease: Lease) -> None:
        """Ends a lease.

        Raises:
            KeyError: the lease has ended already.
        """
        self.leases.remove(lease)
        self._touch(lease.node, lease.held)
        if lease.uses:
            for residence in lease.held:
                tier = self.tiers[residence.tier]
                try:
                    tier.policy.finished(residence, lease.matched.get(residence.tier, 0))
                except Exception as error:
                    tier.give_up_policy(error)
        self._unhold(lease.held)

    def pin(self, node: Node, name: str = "", seconds: float | None = None) -> Pin:
        """Holds the path to `node` until `unpin`, or for so many `seconds` of the steady clock.

        O(chunks of the path that no pin of its scope is on), and O(log pins).

        Raises:
            InputError: `node` is a root or pending: there is nothing to hold; or `seconds` is not above 0.
            PinBudgetExceeded: the scope would pin more than `pin_budget_bytes`.
        """
        if node.depth == 0:
            raise InputError("nothing to pin: the prompt has no whole chunk in the cache")
        if not node.is_resident:
            raise InputError("nothing to pin: the prompt's last whole chunk is still being computed")
        if seconds is not None and not seconds > 0:
            raise InputError(
                f"a pin for {seconds} seconds holds nothing; give more than 0, or no time at all"
            )
        self.expire_pins()
        if self._pin_budget_bytes is not None:
            pinned = self._pin_book.bytes_with(node)
            if pinned > self._pin_budget_bytes:
                raise PinBudgetExceeded(
                    f"pinning {name or 'this path'} would hold {pinned} bytes for scope {node.root.scope}, whose "
                    f"budget is {self._pin_budget_bytes}; unpin something, or raise the budget"
                )
        ends_seconds = None if seconds is None else self.steady() + seconds
        pin = Pin(node, residences_to_hold(node), name, ends_seconds)
        self._hold(node, pin.held)
        self._pin_book.add(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        """Ends a pin; a pin that has expired already is fine."""
        if pin in self.pins:
            self._pin_book.remove(pin)
            self._unhold(pin.held)

    def expire_pins(self) -> None:
        """Ends every pin whose time is over. O(log pins) for each of these."""
        now = self.steady()
        while (pin := self._pin_book.over(now)) is not None:
            self.unpin(pin)

    def _hold(self, node: Node, held: list[Residence]) -> None:
        self._touch(node, held)
        for residence in held:
            residence.holds += 1

    def _unhold(self, held: list[Residence]) -> None:
        for residence in held:
            residence.holds -= 1
            self.tiers[residence.tier].settle(residence)

    def _touch(self, node: Node, held: list[Residence]) -> None:
        # Of a path that ends in a lower tier, the upper tiers' part is in use too.
        self._tick += 1
        node.used_seconds = self.steady()
        for residence in held:
            residence.last_use = self._tick

    # ---- growing

    def claim(self, match: Match, tokens: bytes) -> Claim:
        """Claims every whole chunk of `tokens` beyond the match, as pending nodes. The caller computes
        and `publish`es them in order, holding a lease on the match and extending it to each node it
        publishes; `abandon` gives up the rest.
        """
        assert match.awaits is None, "a request that must wait claims nothing"
        claim, parent, key = Claim([]), match.node, match.chain_key
        token_bytes_per_chunk, now = self.chunk_tokens * TOKEN_BYTES, self.steady()
        for end in range(
            (len(match.path) + 1) * token_bytes_per_chunk, len(tokens) + 1, token_bytes_per_chunk
        ):
            chunk = tokens[end - token_bytes_per_chunk : end]
            if parent is match.node and parent.find(match.root, chunk) is not None:
                # The match was made of all tokens but the last, so it could not reach a last chunk that is there.
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
            # Another node, where somebody else stored this chunk and it has gone since.
            claim.nodes[0].parent = stored
        return stored

    def abandon(self, claim: Claim) -> None:
        """Gives up what a claim has not published; waiters find nothing there and may claim it."""
        for node in reversed(claim.nodes):
            if node.claim is claim:
                node.claim = None
                self._detach_if_empty(node)
        claim.nodes.clear()

    def insert(
        self, parent: Node, root: Root, key: bytes, chunk: bytes, tier: int, handle: object, size_bytes: int
    ) -> Node:
        """Stores one whole chunk below `parent`, in the namespace of `root`.

        Returns the node that now stands there. If its handle is not the one passed, another request
        stored the chunk first, and the handle passed is still the caller's.
        """
        node = self._store(parent, root, key, chunk, tier, handle, size_bytes, self.steady())
        residence = node.at[tier]
        assert residence is not None
        self.tiers[tier].settle(residence)
        return node

    def insert_path(
        self, match: Match, tokens: bytes, tier: int, handles: Sequence[object], size_bytes: int
    ) -> list[Node]:
        """Stores the whole chunks of `tokens` beyond a match, `size_bytes` each, as `insert` would one by one."""
        nodes: list[Node] = []
        parent, key, root = match.node, match.chain_key, match.root
        token_bytes_per_chunk, now = self.chunk_tokens * TOKEN_BYTES, self.steady()
        end = (len(match.path) + 1) * token_bytes_per_chunk
        for place, handle in enumerate(handles):
            chunk = tokens[end - token_bytes_per_chunk : end]
            key = self._digest(key + chunk)
            parent = self._store(parent, root, key, chunk, tier, handle, size_bytes, now)
            nodes.append(parent)
            end += token_bytes_per_chunk
            if parent.children is None and parent.grafts is None:
                # Nothing can stand below a new node: the rest is one new chain.
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
        self._tick += 1
        tick, nodes, end = self._tick, [], 0
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
        self._tick += 1
        residence = Residence(node, tier, handle, size_bytes, self._tick)
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
        """Takes leaves out of a tier until `size_bytes` are freed or nothing more may go.

        With `scope`, which must have a quota in that tier, only chunks of that scope are evicted.
        Returns what left, in the order it left; the caller owns the handles. A call that is interrupted loses
        none: `untold`, or the next call for this tier, returns what it took out.

        Raises:
            InputError: `scope` has no quota in that tier.
        """
        if self.pins:
            self.expire_pins()
        evicted, place, now = self._untold[tier], self.tiers[tier], self.steady()
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
        """What an interrupted `evict` took out of a tier; the caller owns the handles from here on."""
        evicted, self._untold[tier] = self._untold[tier], []
        return evicted

    def can_free(self, tier: int, size_bytes: int) -> bool:
        """Whether `evict` could free so much. Changes nothing, but that pins whose time is over end.

        O(chunks under leases), and O(chunks under pins) where pins decide.
        """
        if self.pins:
            self.expire_pins()
        may_stay = self.tiers[tier].used_bytes - size_bytes
        if may_stay < 0:
            return False
        seen: set[Node] = set()
        held = held_bytes(self.leases, tier, seen)
        if held > may_stay:
            return False
        # Scopes' pins may overlap, and chunks may be smaller here than elsewhere: this is the most they can hold.
        if held + self._pin_book.size_bytes <= may_stay:
            return True
        return held + held_bytes(self.pins, tier, seen) <= may_stay

    def _leave(self, residence: Residence, tier: Tier, reason: str, now: float) -> Residence | None:
        """Takes a leaf out of the tier; its parent's residence there, to be settled once the tree is whole."""
        node, number = residence.node, residence.tier
        tier.left(node.root.scope, residence.size_bytes)
        node.at[number] = None
        if self.pins:
            # Pinned, and yet a leaf to evict: it came into this tier after the pin, which holds it in another.
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
            # Somebody else stored a claimed chunk, and it has gone before the claimant came to it: what is
            # pending below says who is to compute it after all.
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
