"""The tree against a naive model: plain dicts of token paths, searched from end to end for every answer.

A path is named by its steps, `((scope, tokens of the chunk), ...)`: a tenant's continuation of a shared
scope's path changes scope on the way. The model never looks at keys, parents, counters or queues.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from xxhash import xxh3_128_digest

from kvtrie.prefix_tree import (
    Claim,
    Lease,
    Match,
    Namespace,
    Node,
    Pin,
    PinBudgetExceeded,
    PrefixTree,
    Tier,
    check,
)
from kvtrie.prefix_tree.policies import policy_named
from kvtrie.prefix_tree.policies.named import POLICIES
from kvtrie.prefix_tree.roots import ROOT_BYTES
from kvtrie.prefix_tree.tombstones import RING_BYTES, TOMBSTONE_BYTES

Path = tuple[tuple[str, tuple[int, ...]], ...]
"""Steps from the first chunk to the last: the scope that owns it, and its tokens."""

DEVICE, HOST = 0, 1
CAPACITY_BYTES = (36, 28)
PIN_BUDGET_BYTES = 12
SCOPES = ("tenant:a", "tenant:b", "shared:s", "shared:u")
STONES_PER_SCOPE = 3
STONES_BYTES = ROOT_BYTES + ROOT_BYTES // 2
"""For the tombstones of all scopes; as much again is for idle roots, and enough for one."""
VIEWS = (
    ("tenant:a", ()),
    ("tenant:a", ("shared:s",)),
    ("tenant:a", ("shared:s", "shared:u")),
    ("tenant:b", ()),
    ("tenant:b", ("shared:s",)),
    ("tenant:b", ("shared:u", "shared:s")),
    ("shared:s", ()),
    ("shared:u", ()),
)
"""Who asks, and which shared scopes it may read."""


def as_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, "<i4").tobytes()


def tokens_of(path: Path) -> tuple[int, ...]:
    return tuple(token for _, chunk in path for token in chunk)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count


def prefixes(path: Path) -> list[Path]:
    return [path[:depth] for depth in range(1, len(path) + 1)]


@dataclass
class Naive:
    """What is stored where, who holds it and when it was used, without any structure."""

    sizes: tuple[dict[Path, int], ...] = field(default_factory=lambda: ({}, {}))
    """Bytes of each stored path's last chunk, by tier."""
    used: tuple[dict[Path, int], ...] = field(default_factory=lambda: ({}, {}))
    """Latest use of each stored path or of one that continues it, by tier."""
    pending: dict[Path, object] = field(default_factory=dict)
    """Paths being computed, and the claim that computes them."""
    uses: tuple[dict[Path, int], ...] = field(default_factory=lambda: ({}, {}))
    """Requests that went through each stored path while it was stored, by tier."""
    holds: dict[object, tuple[Path, frozenset[tuple[int, Path]], int]] = field(default_factory=dict)
    """Leases and pins: the path, everything of it that was stored when the hold began, and whether it is for
    a request."""
    ticks: int = 0
    key_of: Callable[[Path], bytes] = repr  # type: ignore[assignment]
    stones: dict[str, list[bytes]] = field(default_factory=dict)
    """Keys of evicted chunks by scope, the oldest first; the scope that evicted last is the last."""

    def bury(self, path: Path) -> None:
        """A chunk is evicted: its scope remembers three, and all together what they have memory for."""
        scope, key = path[-1][0], self.key_of(path)
        ring = self.stones.pop(scope, [])
        self.stones[scope] = [*(stone for stone in ring if stone != key), key][-STONES_PER_SCOPE:]
        while sum(RING_BYTES + TOMBSTONE_BYTES * len(ring) for ring in self.stones.values()) > STONES_BYTES:
            longest_ago = next(iter(self.stones))
            self.stones[longest_ago].pop(0)
            self.stones = {scope: ring for scope, ring in self.stones.items() if ring}

    def unearth(self, path: Path) -> None:
        """A chunk is cached again."""
        scope, key = path[-1][0], self.key_of(path)
        self.stones = {
            owner: kept
            for owner, ring in self.stones.items()
            if (kept := [stone for stone in ring if (owner, stone) != (scope, key)])
        }

    def resident(self) -> set[Path]:
        return {*self.sizes[DEVICE], *self.sizes[HOST]}

    @staticmethod
    def may_see(scope: str, readable: Sequence[str], path: Path) -> bool:
        """A tenant sees its own paths, those of one shared scope, and its own continuations of them."""
        owners = [owner for owner, _ in path]
        shared = 0
        while shared < len(owners) and owners[shared] == owners[0] and owners[0] in readable:
            shared += 1
        return all(owner == scope for owner in owners[shared:])

    def cached(self, scope: str, readable: Sequence[str], prompt: Sequence[int]) -> int:
        """max over stored paths of their common prefix with the prompt."""
        seen = (path for path in self.resident() if self.may_see(scope, readable, path))
        return max((common_prefix(tokens_of(path), prompt) for path in seen), default=0)

    def awaited(self, scope: str, readable: Sequence[str], prompt: Sequence[int], whole: int) -> int:
        """Depth of the deepest pending path that the prompt contains, if beyond `whole` chunks; else 0."""
        found = 0
        for path in self.pending:
            tokens = tokens_of(path)
            if self.may_see(scope, readable, path) and tuple(prompt[: len(tokens)]) == tokens:
                found = max(found, len(path))
        return found if found > whole else 0

    def use(self, touched: set[tuple[int, Path]] | frozenset[tuple[int, Path]]) -> None:
        self.ticks += 1
        for tier, path in touched:
            self.used[tier][path] = self.ticks

    def hold(self, holder: object, path: Path, uses: int = 0) -> None:
        """A new hold, or one that moves here; a request that moves is still one use of each path it is on."""
        stored = frozenset((t, p) for t in (DEVICE, HOST) for p in prefixes(path) if p in self.sizes[t])
        self.use(stored)
        if holder in self.holds:
            _, left, uses = self.holds[holder]
            for tier, above in left:
                self.uses[tier][above] -= uses
        for tier, above in stored:
            self.uses[tier][above] += uses
        self.holds[holder] = (path, stored, uses)

    def store(self, tier: int, path: Path, size_bytes: int) -> bool:
        """Whether it was new there."""
        if path in self.sizes[tier]:
            return False
        self.sizes[tier][path] = size_bytes
        self.unearth(path)
        self.uses[tier][path] = 0
        self.pending.pop(path, None)
        self.use({(tier, above) for above in prefixes(path)})
        return True

    def leaves(self, tier: int) -> list[Path]:
        """What has nothing below it in the tier and nobody holds, least recently used first."""
        here = self.sizes[tier]
        inner = {path[:-1] for path in here}
        held = {path for _, stored, _ in self.holds.values() for t, path in stored if t == tier}
        leaves = [path for path in here if path not in inner and path not in held]
        return sorted(leaves, key=lambda path: self.used[tier][path])

    def take_out(self, tier: int, path: Path) -> None:
        """One leaf goes."""
        self.bury(path)
        for of_tier in (self.sizes, self.used, self.uses):
            del of_tier[tier][path]
        if path not in self.resident():
            # Still to be computed by the claim that is computing what continues it.
            below = [claim for pending, claim in self.pending.items() if pending[:-1] == path]
            if below:
                self.pending[path] = below[0]

    def pinned_bytes(self, scope: str, pins: Sequence[Path]) -> int:
        paths = {above for path in pins if path[-1][0] == scope for above in prefixes(path)}
        return sum(max(sizes.get(path, 0) for sizes in self.sizes) for path in paths)


@dataclass
class Request:
    """A claimant: it holds a lease, and computes what it claimed chunk by chunk."""

    claim: Claim
    lease: Lease
    paths: list[Path]
    """What it claimed and has not published."""
    size_bytes: int


TOKEN = st.sampled_from((0, 1, 256))
"""256 is byte-wise below 1, so token order and number order differ."""
Draw = tuple[int, int, list[int]]
PROMPT = st.tuples(st.integers(0, 31), st.integers(0, 16), st.lists(TOKEN, max_size=7))
"""Which stored path to begin with, how many of its tokens to keep, and what follows."""
View = tuple[str, tuple[str, ...]]
VIEW = st.sampled_from(VIEWS)
SIZE = st.sampled_from((1, 1, 2, 3))
LARGEST = 3
TIER = st.sampled_from((DEVICE, DEVICE, HOST))
PICK = st.integers(0, 31)


class TreeMachine(RuleBasedStateMachine):
    """Every rule does one thing to tree and model, and compares what came of it."""

    key_bits = 128
    policy = "lru"
    steps_taken = 0

    @initialize(
        chunk_tokens=st.integers(2, 4),
        stored=st.lists(st.tuples(VIEW, PROMPT, SIZE, TIER), min_size=2, max_size=6),
    )
    def start(self, chunk_tokens: int, stored: list[tuple[View, Draw, int, int]]) -> None:
        self.now, self.set_by = 1000.0, 0.0
        self.chunk = chunk_tokens
        self.tree = PrefixTree(
            chunk_tokens,
            [self.tier("device", DEVICE), self.tier("host", HOST)],
            digest=self.digest,
            clock=lambda: self.now + self.set_by,
            steady=lambda: self.now,
            tombstones_per_scope=STONES_PER_SCOPE,
            remembered_bytes=2 * STONES_BYTES,
            pin_budget_bytes=PIN_BUDGET_BYTES,
        )
        self.roots = {scope: self.tree.root(self.namespace(scope)) for scope in SCOPES}
        self.naive = Naive(key_of=self.key_of)
        self.leases: list[Lease] = []
        self.pins: list[tuple[Pin, float | None]] = []
        """Each with its end, on the steady clock."""
        self.requests: list[Request] = []
        self.waiting: list[tuple[View, list[int]]] = []
        self.booked: list[tuple[int, str, int]] = []
        self.handles = 0
        self.hits = 0
        for view, drawn, size_bytes, tier in stored:
            self.store_new(view, self.prompt(drawn), size_bytes, tier, at_once=True)

    def tier(self, name: str, number: int) -> Tier:
        parameters = {"steady": lambda: self.now, "ttl_seconds": 20} if self.policy == "priority" else {}
        policy = policy_named(self.policy, capacity_chunks=8, **parameters)
        return Tier(name, CAPACITY_BYTES[number], policy)

    def digest(self, data: bytes) -> bytes:
        key = int.from_bytes(xxh3_128_digest(data), "big") % (1 << self.key_bits)
        return key.to_bytes(16, "big")

    def namespace(self, scope: str) -> Namespace:
        return Namespace(scope, chunk_tokens=self.chunk)

    def key_of(self, path: Path) -> bytes:
        return self.tree.chain_key(self.namespace(path[-1][0]).digest, as_bytes(tokens_of(path)), len(path))

    # ---- what the rules are made of

    def handle(self) -> int:
        self.handles += 1
        return self.handles

    def prompt(self, drawn: Draw) -> list[int]:
        pick, keep, tail = drawn
        stored = sorted(self.naive.resident() | set(self.naive.pending))
        head = tokens_of(stored[pick % len(stored)])[:keep] if stored else ()
        return [*head, *tail]

    def path_of(self, node: Node) -> Path:
        return tuple(
            (above.root.scope, tuple(np.frombuffer(above.tokens, "<i4").tolist())) for above in node.path()
        )

    def nodes(self) -> dict[Path, Node]:
        return {self.path_of(node): node for node in self.tree.walk()}

    def stored_node(self, pick: int) -> tuple[Path, Node] | None:
        stored = sorted(self.naive.resident())
        if not stored:
            return None
        path = stored[pick % len(stored)]
        return path, self.nodes()[path]

    def lookup(self, view: View, prompt: Sequence[int]) -> Match:
        scope, readable = view
        root = self.roots[scope]
        match = self.tree.match(root, as_bytes(prompt), [self.roots[name] for name in readable])
        cached = self.naive.cached(scope, readable, prompt)
        whole = cached // self.chunk
        assert match.root is root
        assert match.cached_tokens == cached
        assert (match.tokens, match.partial_tokens) == (whole * self.chunk, cached % self.chunk)
        assert len(match.path) == whole
        path = self.path_of(match.node)
        assert tokens_of(path) == tuple(prompt[: match.tokens])
        assert self.naive.may_see(scope, readable, path)
        assert all(path in self.naive.resident() for path in prefixes(path))
        assert match.chain_key == self.tree.chain_key(root.key, as_bytes(prompt), whole)
        assert (match.partial is None) == (match.partial_tokens == 0)
        if match.partial is not None:
            partial = self.path_of(match.partial)
            assert partial in self.naive.resident()
            assert self.naive.may_see(scope, readable, partial)
            assert common_prefix(tokens_of(partial), prompt) == match.cached_tokens
        awaited = self.naive.awaited(scope, readable, prompt, whole)
        assert (0 if match.awaits is None else match.awaits.depth) == awaited
        if match.awaits is not None:
            pending = self.path_of(match.awaits)
            assert pending in self.naive.pending
            assert tokens_of(pending) == tuple(prompt[: awaited * self.chunk])
        return match

    def hold(self, match: Match) -> Lease:
        lease = self.tree.lease(match)
        self.hits += match.cached_tokens > 0
        self.naive.hold(lease, self.path_of(match.node), uses=1)
        return lease

    def let_go(self, lease: Lease) -> None:
        self.tree.release(lease)
        _, stored, _ = self.naive.holds.pop(lease)
        self.naive.use(stored)

    def make_room(self, tier: int, size_bytes: int) -> bool:
        missing = size_bytes - self.tree.tiers[tier].free_bytes
        if missing > 0:
            self.take_out(tier, missing)
        return self.tree.tiers[tier].free_bytes >= size_bytes

    def take_out(self, tier: int, size_bytes: int) -> list[Path]:
        self.forget_expired()
        handles = {path: node.at[tier].handle for path, node in self.nodes().items() if node.at[tier]}
        gone = self.tree.evict(tier, size_bytes, "test")
        paths = [self.path_of(evicted.node) for evicted in gone]
        missing = size_bytes
        for path, evicted in zip(paths, gone):
            assert missing > 0, "no more than was asked for"
            assert path in self.allowed_victims(tier)
            assert (evicted.handle, evicted.size_bytes) == (handles[path], self.naive.sizes[tier][path])
            missing -= evicted.size_bytes
            self.naive.take_out(tier, path)
            assert evicted.node.key == self.key_of(path)
        assert missing <= 0 or not self.naive.leaves(tier), "as much as was asked for"
        return paths

    def allowed_victims(self, tier: int) -> list[Path]:
        """Which leaves may go next: of LRU and LFU one, of other policies any."""
        leaves = self.naive.leaves(tier)
        uses = self.naive.uses[tier]
        if self.policy == "lru":
            return leaves[:1]
        return [min(leaves, key=lambda path: uses[path])] if self.policy == "lfu" else leaves

    def store(self, node: Node, tier: int, size_bytes: int) -> None:
        """Copies an existing node into one more tier."""
        handle = self.handle()
        assert node.parent is not None
        stored = self.tree.insert(node.parent, node.root, node.key, node.tokens, tier, handle, size_bytes)
        assert stored is node
        new = self.naive.store(tier, self.path_of(node), size_bytes)
        residence = node.at[tier]
        assert residence is not None
        assert (residence.handle == handle) == new

    def copy_path(self, lease: Lease, node: Node, tier: int, size_bytes: int) -> bool:
        """Copies what a tier lacks of a leased path, and leases the copies; False when there is no room."""
        missing = [above for above in node.path() if above.at[tier] is None]
        if not self.make_room(tier, size_bytes * len(missing)):
            return False
        for above in missing:
            self.store(above, tier, size_bytes)
        if missing:
            self.tree.extend(lease, node)
            self.naive.hold(lease, self.path_of(node))
        return True

    def forget_expired(self) -> None:
        """The model's side of `expire_pins`, which eviction and pinning begin with."""
        for pin, end in self.pins:
            if end is not None and end <= self.now:
                del self.naive.holds[pin]
        self.pins = [(pin, end) for pin, end in self.pins if end is None or end > self.now]

    # ---- reading

    @rule(view=VIEW, drawn=PROMPT)
    def look_up(self, view: View, drawn: Draw) -> None:
        prompt = self.prompt(drawn)
        for end in range(len(prompt) + 1):
            self.lookup(view, prompt[:end])

    # ---- storing

    @rule(view=VIEW, drawn=PROMPT, size_bytes=SIZE, tier=TIER, at_once=st.booleans())
    def store_prompt(
        self,
        view: View,
        drawn: Draw,
        size_bytes: int,
        tier: int,
        at_once: bool,
    ) -> None:
        self.store_new(view, self.prompt(drawn), size_bytes, tier, at_once)

    def store_new(self, view: View, prompt: list[int], size_bytes: int, tier: int, at_once: bool) -> None:
        """Whole, or chunk by chunk; right through what others are computing, as decoding may do."""
        match = self.lookup(view, prompt)
        lease = self.hold(match)
        if self.copy_path(lease, match.node, tier, size_bytes):
            fresh = len(prompt) // self.chunk - len(match.path)
            self.make_room(tier, fresh * size_bytes)
            fresh = min(fresh, self.tree.tiers[tier].free_bytes // size_bytes)
            base = self.path_of(match.node)
            steps = [
                (view[0], tuple(prompt[at : at + self.chunk]))
                for at in range(match.tokens, match.tokens + fresh * self.chunk, self.chunk)
            ]
            handles = [self.handle() for _ in steps]
            if at_once:
                nodes = self.tree.insert_path(match, as_bytes(prompt), tier, handles, size_bytes)
            else:
                nodes, parent, key = [], match.node, match.chain_key
                for (_, chunk), handle in zip(steps, handles):
                    key = self.tree.next_key(key, as_bytes(chunk))
                    parent = self.tree.insert(
                        parent, match.root, key, as_bytes(chunk), tier, handle, size_bytes
                    )
                    nodes.append(parent)
            assert len(nodes) == fresh
            for place, (node, handle) in enumerate(zip(nodes, handles), 1):
                path = base + tuple(steps[:place])
                assert self.path_of(node) == path
                residence = node.at[tier]
                assert self.naive.store(tier, path, size_bytes)
                assert residence is not None
                assert residence.handle == handle
        self.let_go(lease)

    @rule(pick=PICK, tier=TIER, size_bytes=SIZE)
    def copy_to_tier(self, pick: int, tier: int, size_bytes: int) -> None:
        """Device to host is a back-up, host to device a load; what is there already stays as it is."""
        chosen = self.stored_node(pick)
        if chosen is None:
            return
        path, node = chosen
        lease = self.tree.lease_node(node)
        self.naive.hold(lease, path)
        if self.copy_path(lease, node, tier, size_bytes) and self.make_room(tier, size_bytes):
            self.store(node, tier, size_bytes)
        self.let_go(lease)

    # ---- holding

    @precondition(lambda self: len(self.leases) < 4)
    @rule(view=VIEW, drawn=PROMPT)
    def lease(self, view: View, drawn: Draw) -> None:
        self.leases.append(self.hold(self.lookup(view, self.prompt(drawn))))

    @precondition(lambda self: self.leases)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        lease = self.leases.pop(pick % len(self.leases))
        self.let_go(lease)
        with pytest.raises(KeyError):
            self.tree.release(lease)

    @precondition(lambda self: self.leases)
    @rule(pick=PICK, onto=PICK)
    def extend(self, pick: int, onto: int) -> None:
        chosen = self.stored_node(onto)
        if chosen is not None:
            lease = self.leases[pick % len(self.leases)]
            self.tree.extend(lease, chosen[1])
            self.naive.hold(lease, chosen[0])

    @rule(pick=PICK, seconds=st.sampled_from((None, 5, 50)))
    def pin(self, pick: int, seconds: int | None) -> None:
        chosen = self.stored_node(pick)
        if chosen is None:
            return
        path, node = chosen
        self.forget_expired()
        pinned = [self.naive.holds[pin][0] for pin, _ in self.pins]
        if self.naive.pinned_bytes(path[-1][0], [*pinned, path]) > PIN_BUDGET_BYTES:
            with pytest.raises(PinBudgetExceeded):
                self.tree.pin(node, "test", seconds)
            return
        pin = self.tree.pin(node, "test", seconds)
        self.naive.hold(pin, path)
        self.pins.append((pin, None if seconds is None else self.now + seconds))

    @precondition(lambda self: self.pins)
    @rule(pick=PICK)
    def unpin(self, pick: int) -> None:
        pin, _ = self.pins.pop(pick % len(self.pins))
        del self.naive.holds[pin]
        self.tree.unpin(pin)
        self.tree.unpin(pin)

    @precondition(lambda self: any(end is not None for _, end in self.pins))
    @rule(seconds=st.sampled_from((1, 10, 60)))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        if seconds == 10:
            self.tree.expire_pins()
            self.forget_expired()

    @rule(seconds=st.sampled_from((-3600.0, -7.0, 0.0, 7200.0)))
    def wall_clock_is_set(self, seconds: float) -> None:
        """By people or a time server: no lifetime may follow it."""
        self.set_by = seconds

    @rule(scope=st.sampled_from(SCOPES))
    def forget_root(self, scope: str) -> None:
        """A caller lets go of a root and asks again: the tree has kept it if it had to, and if not it is free."""
        root = self.roots.pop(scope)
        used = any(path[-1][0] == scope for path in (*self.naive.resident(), *self.naive.pending))
        kept = any(other is root for other in self.tree.roots())
        leased = any(lease.node is root for lease in self.tree.leases)
        assert kept or not used
        seen, hits = weakref.ref(root), root.hits
        del root
        assert (seen() is not None) == (kept or leased)
        if seen() is None:
            self.hits -= hits
        self.roots[scope] = self.tree.root(self.namespace(scope))
        assert seen() in (None, self.roots[scope])

    # ---- claiming

    @precondition(lambda self: len(self.requests) < 3)
    @rule(view=VIEW, drawn=PROMPT, size_bytes=SIZE)
    def begin_request(self, view: View, drawn: Draw, size_bytes: int) -> None:
        self.begin(view, self.prompt(drawn), size_bytes)

    @precondition(lambda self: self.waiting and len(self.requests) < 3)
    @rule(size_bytes=SIZE)
    def waiter_tries_again(self, size_bytes: int) -> None:
        view, prompt = self.waiting.pop(0)
        self.begin(view, prompt, size_bytes)

    def begin(self, view: View, prompt: list[int], size_bytes: int) -> None:
        # All but the last token, of which the logits come; so a last whole chunk may be there unseen.
        match = self.lookup(view, prompt[:-1])
        if match.awaits is not None:
            self.waiting.append((view, prompt))
            return
        lease = self.hold(match)
        if not self.copy_path(lease, match.node, DEVICE, size_bytes):
            self.let_go(lease)
            return
        claim = self.tree.claim(match, as_bytes(prompt))
        path, claimed = self.path_of(match.node), []
        for at in range(match.tokens, len(prompt) - self.chunk + 1, self.chunk):
            path = (*path, (view[0], tuple(prompt[at : at + self.chunk])))
            if path in self.naive.resident() or path in self.naive.pending:
                assert len(tokens_of(path)) == len(prompt)
                break
            self.naive.pending[path] = claim
            claimed.append(path)
        assert [self.path_of(node) for node in claim.nodes] == claimed
        self.requests.append(Request(claim, lease, claimed, size_bytes))

    @precondition(lambda self: self.requests)
    @rule(pick=PICK)
    def publish(self, pick: int) -> None:
        request = self.requests[pick % len(self.requests)]
        if not request.paths or not self.make_room(DEVICE, request.size_bytes):
            self.give_up(request)
            return
        path, handle = request.paths.pop(0), self.handle()
        node = self.tree.publish(request.claim, DEVICE, handle, request.size_bytes)
        assert self.path_of(node) == path
        new = self.naive.store(DEVICE, path, request.size_bytes)
        residence = node.at[DEVICE]
        assert residence is not None
        assert (residence.handle == handle) == new
        self.tree.extend(request.lease, node)
        self.naive.hold(request.lease, path)

    @precondition(lambda self: self.requests)
    @rule(pick=PICK)
    def abandon(self, pick: int) -> None:
        self.give_up(self.requests[pick % len(self.requests)])

    def give_up(self, request: Request) -> None:
        self.requests.remove(request)
        self.tree.abandon(request.claim)
        for path in [path for path, claim in self.naive.pending.items() if claim is request.claim]:
            del self.naive.pending[path]
        self.let_go(request.lease)

    # ---- shrinking

    @rule(tier=TIER, size_bytes=st.integers(0, 9))
    def evict(self, tier: int, size_bytes: int) -> None:
        self.take_out(tier, size_bytes)

    @rule(tier=TIER, size_bytes=st.integers(0, 40))
    def ask_what_could_be_freed(self, tier: int, size_bytes: int) -> None:
        """All that nobody holds, however many evictions that takes."""
        self.forget_expired()
        held = {path for _, stored, _ in self.naive.holds.values() for t, path in stored if t == tier}
        free = sum(size for path, size in self.naive.sizes[tier].items() if path not in held)
        assert self.tree.can_free(tier, size_bytes) == (free >= size_bytes)

    @rule(size_bytes=st.integers(1, 9))
    def demote(self, size_bytes: int) -> None:
        """What leaves the device goes to the host where the host has the path above it."""
        for path in reversed(self.take_out(DEVICE, size_bytes)):
            if len(path) > 1 and path[:-1] not in self.naive.sizes[HOST]:
                continue
            if path in self.naive.sizes[HOST] or self.tree.tiers[HOST].free_bytes < 1:
                continue
            root, chunk = self.roots[path[-1][0]], as_bytes(path[-1][1])
            above = self.nodes()[path[:-1]] if len(path) > 1 else root
            key = self.tree.chain_key(root.key, as_bytes(tokens_of(path)), len(path))
            node = self.tree.insert(above, root, key, chunk, HOST, self.handle(), 1)
            assert self.path_of(node) == path
            assert self.tree.tombstones.find(root.scope, key) is None
            self.naive.store(HOST, path, 1)

    @rule(scope=st.sampled_from(("tenant:a", "shared:s")), tier=TIER, size_bytes=st.integers(1, 6))
    def reserve(self, scope: str, tier: int, size_bytes: int) -> None:
        if len(self.booked) < 2 and self.make_room(tier, size_bytes):
            self.tree.tiers[tier].reserve(scope, size_bytes)
            self.booked.append((tier, scope, size_bytes))

    @precondition(lambda self: self.booked)
    @rule(pick=PICK)
    def unreserve(self, pick: int) -> None:
        tier, scope, size_bytes = self.booked.pop(pick % len(self.booked))
        self.tree.tiers[tier].unreserve(scope, size_bytes)

    # ---- after every step

    @invariant()
    def tree_equals_model(self) -> None:
        type(self).steps_taken += 1
        check(self.tree)
        nodes = list(self.tree.walk())
        named = {self.path_of(node): node for node in nodes}
        assert len(named) == len(nodes) == len(self.tree)
        for number, tier in enumerate(self.tree.tiers):
            stored = {p: n.at[number].size_bytes for p, n in named.items() if n.at[number] is not None}
            assert stored == self.naive.sizes[number]
            scopes: dict[str, list[int]] = {}
            for path, size_bytes in stored.items():
                scopes.setdefault(path[-1][0], [0, 0])[0] += size_bytes
            for where, scope, size_bytes in self.booked:
                if where == number:
                    scopes.setdefault(scope, [0, 0])[1] += size_bytes
            assert {s: [b.used_bytes, b.pending_bytes] for s, b in tier.scopes.items()} == scopes
            assert tier.free_bytes + sum(map(sum, scopes.values())) == tier.capacity_bytes
        pending = {path for path, node in named.items() if node.claim is not None}
        assert pending == set(self.naive.pending)
        self.uses_equal(named)
        for _, held, _ in self.naive.holds.values():
            assert all(path in self.naive.sizes[tier] for tier, path in held)
        assert sum(node.hits for node in (*nodes, *self.roots.values())) == self.hits
        assert self.tree.pins == {pin for pin, _ in self.pins}
        for scope in SCOPES:
            pinned = self.naive.pinned_bytes(scope, [self.naive.holds[pin][0] for pin, _ in self.pins])
            assert self.tree.pinned_bytes(scope) == pinned
        for pin, end in self.pins:
            assert pin.expires_at == (None if end is None else end + self.set_by)
        stones: dict[str, list[bytes]] = {}
        for scope, stone in self.tree.tombstones:
            stones.setdefault(scope, []).append(stone.key)
        assert list(stones.items()) == list(self.naive.stones.items())

    def uses_equal(self, named: dict[Path, Node]) -> None:
        """What a node's residences have counted at and below it is what the model counted for its path."""
        for tier in (DEVICE, HOST):
            below: Counter[Path] = Counter()
            for path, node in reversed(named.items()):
                residence = node.at[tier]
                if residence is not None:
                    below[path] += residence.uses
                    below[path[:-1]] += below[path]
                    assert below[path] == self.naive.uses[tier][path]

    def teardown(self) -> None:
        """Everything given back leaves nothing behind."""
        if not hasattr(self, "booked"):
            return
        for request in list(self.requests):
            self.give_up(request)
        for lease in self.leases:
            self.let_go(lease)
        for pin, _ in self.pins:
            del self.naive.holds[pin]
            self.tree.unpin(pin)
        self.pins.clear()
        for tier, scope, size_bytes in self.booked:
            self.tree.tiers[tier].unreserve(scope, size_bytes)
        self.booked.clear()
        for tier in (DEVICE, HOST):
            self.take_out(tier, CAPACITY_BYTES[tier])
        assert len(self.tree) == 0
        assert len(self.tree.roots()) == 1
        assert not self.tree.leases
        assert not self.tree.pins
        for tier in self.tree.tiers:
            assert (tier.free_bytes, tier.chunks, tier.scopes) == (tier.capacity_bytes, 0, {})
        check(self.tree)


class EightBitKeys(TreeMachine):
    """Dozens of chunks, 256 keys: collisions all over the tree, and nothing may change but speed."""

    key_bits = 8
    steps_taken = 0


class TwoBitKeys(TreeMachine):
    """Four keys: every chunk collides, with its siblings too."""

    key_bits = 2
    steps_taken = 0


class FrequencyFirst(TreeMachine):
    """LFU: exactly the least used leaf goes, the oldest of equals."""

    policy = "lfu"
    steps_taken = 0


class Limited(TreeMachine):
    """Minimum shares and quotas: who may go is decided by them first, then by LRU among the rest."""

    steps_taken = 0
    shares: ClassVar = {"tenant:a": 12, "shared:s": 6}
    quotas: ClassVar = {"tenant:b": 10, "tenant:a": 20}

    def tier(self, name: str, number: int) -> Tier:
        return Tier(name, CAPACITY_BYTES[number], shares=self.shares, quotas=self.quotas)

    def allowed_victims(self, tier: int) -> list[Path]:
        leaves, sizes = self.naive.leaves(tier), self.naive.sizes[tier]
        occupied: Counter[str] = Counter()
        for path, size_bytes in sizes.items():
            occupied[path[-1][0]] += size_bytes
        for where, scope, size_bytes in self.booked:
            occupied[scope] += size_bytes if where == tier else 0
        over = [path for path in leaves if occupied[path[-1][0]] > self.quotas.get(path[-1][0], 99)]
        if over:
            oldest_of = {path[-1][0]: path for path in reversed(over)}
            return list(oldest_of.values())
        excess = {path: occupied[path[-1][0]] - self.shares.get(path[-1][0], 0) for path in leaves}
        if all(excess[path] < LARGEST for path in leaves):
            return leaves
        return [path for path in leaves if excess[path] >= sizes[path]]


@functools.cache
def steps_of(machine: type[TreeMachine], examples: int) -> int:
    """Runs a machine once, the same way every time; returns how many steps it took."""
    before = machine.steps_taken
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return machine.steps_taken - before


def machine_of(name: str) -> type[TreeMachine]:
    """A machine whose tiers have another policy: any leaf may go, and everything else must hold."""
    return type(f"Policy_{name}", (TreeMachine,), {"policy": name, "steps_taken": 0})


MACHINES = {TreeMachine: 300, EightBitKeys: 150, TwoBitKeys: 120, FrequencyFirst: 80, Limited: 120} | {
    machine_of(name): 25 for name in POLICIES if name not in ("lru", "lfu")
}
"""Examples of each; sixty steps in most of them."""


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_tree_equals_the_naive_model(machine: type[TreeMachine]) -> None:
    assert steps_of(machine, MACHINES[machine]) > 0


def test_ten_thousand_steps_were_taken() -> None:
    assert sum(steps_of(machine, examples) for machine, examples in MACHINES.items()) >= 10_000
