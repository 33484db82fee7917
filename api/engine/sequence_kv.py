"""One sequence's KV: a leased path of shared chunks, then private slots that are still being filled.

    |  shared chunks (tree, leased)  |  private slots (this sequence's)  |
    0                shared_chunks * chunk_tokens            context_tokens

The engine and the Hugging Face cache drive sequences through the same few verbs: `open_sequence`,
`reserve` room for new tokens, run the model, `commit` what was computed, `close`. Each holds interrupts back while
memory changes hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from threading import get_ident
from typing import TYPE_CHECKING

import numpy as np

from kvtrie.api.engine.held_interrupts import HeldInterrupts
from kvtrie.api.engine.kv_memory import DEVICE, KvMemory, device_slot
from kvtrie.chunk_kernels import StepSequence
from kvtrie.prefix_tree import Claim, Lease, Match, Node, Root
from kvtrie.prefix_tree.errors import PoolExhausted
from kvtrie.prefix_tree.keys import TOKEN_BYTES, path_digests

if TYPE_CHECKING:
    from kvtrie.api.engine.handed_over import HandedOver


class Holding:
    """Memory of one sequence. A separate object, so that it can be given back after the sequence was lost."""

    __slots__ = ("_is_closed", "_memory", "_scope", "claim", "is_dirty", "lease", "path", "slots")

    def __init__(
        self,
        memory: KvMemory,
        scope: str,
        lease: Lease,
        path: list[Node],
        slots: list[int],
        claim: Claim | None,
    ) -> None:
        self._memory = memory
        self._scope = scope
        self._is_closed = False
        self.lease = lease
        self.path = path
        """Shared chunks, first one first."""
        self.slots = slots
        """Slots of all chunks in order, shared ones first."""
        self.claim = claim
        self.is_dirty = False
        """Whether a pass has begun and is not committed: KV that it wrote into private slots may not be finite."""

    @property
    def private(self) -> list[int]:
        """Slots that the tree does not own."""
        return self.slots[len(self.path) :]

    def give(self, slots: list[int]) -> None:
        """Frees private slots; zeroes them first if they may hold NaN, which would reach a later reader."""
        if self.is_dirty:
            self._memory.pool.clear(slots)
        self._memory.give(self._scope, slots)

    def abandon(self) -> None:
        """Abandons the rest of the claim."""
        claim, self.claim = self.claim, None
        if claim is not None:
            self._memory.tree.abandon(claim)

    def close(self) -> None:
        """Gives everything back, each part even if another one raises. A second call does nothing."""
        with HeldInterrupts(), ExitStack() as parts:
            if self._is_closed:
                return
            self._is_closed = True
            private, self.slots, self.path = self.private, [], []
            # Last one first.
            parts.callback(self._memory.tree.release, self.lease)
            parts.callback(self.give, private)
            parts.callback(self.abandon)


class SequenceKV:
    """KV of one sequence. Open it with `open_sequence`; `close` gives everything back."""

    def __init__(
        self,
        memory: KvMemory,
        root: Root,
        lease: Lease,
        path: list[Node],
        chain_key: bytes,
        tokens: bytes,
        private: list[int],
        claim: Claim | None = None,
    ) -> None:
        """Takes over `lease` on `path`, `private` slots and `claim`; `tokens` have their KV in place."""
        self._memory = memory
        self.root = root
        slots = [device_slot(node) for node in path] + private
        self._held = Holding(memory, root.scope, lease, path, slots, claim)
        self._chain_key = chain_key
        self._sealed = False
        self._holders: HandedOver | None = None
        self._path_digest: bytes | None = None
        """sha256 chain over `path`, for records; None until one is written."""
        self.tokens = bytearray(tokens)
        """Tokens whose KV is in place, int32le."""
        self.cached_tokens = self.context_tokens
        """Tokens that were served from the cache when the sequence was opened."""
        self.layout = memory.new_layout()
        """A number that changes whenever `slots` does, and that no other sequence has had."""

    @property
    def context_tokens(self) -> int:
        """Tokens whose KV is in place."""
        return len(self.tokens) // TOKEN_BYTES

    @property
    def lease(self) -> Lease:
        """Lease on the shared chunks."""
        return self._held.lease

    @property
    def path(self) -> Sequence[Node]:
        """The shared chunks, first one first."""
        return self._held.path

    @property
    def slots(self) -> list[int]:
        """Slots of all chunks in order, shared ones first."""
        return self._held.slots

    @property
    def node(self) -> Node:
        """The deepest shared chunk; the root when there is none."""
        return self.lease.node

    def reserve(self, rows: int) -> bool:
        """Takes slots for `rows` new tokens; False, taking none, if memory is short."""
        missing = -(-(self.context_tokens + rows) // self._memory.shape.chunk_tokens) - len(self.slots)
        if missing > 0:
            with HeldInterrupts():
                taken = self._take(missing, self.slots[-1] if self.slots else None)
                if taken is None:
                    return False
                self._held.slots += taken
                self.layout = self._memory.new_layout()
        return True

    def hand_over(self, holders: HandedOver, thread: int) -> None:
        """Leaves the engine: from now on `holders` notes that `thread` holds this sequence and its forks."""
        self._holders = holders
        holders.add(self, self._held, thread)

    @property
    def room(self) -> int:
        """Tokens for which slots are reserved beyond those in place."""
        return len(self.slots) * self._memory.shape.chunk_tokens - self.context_tokens

    def step_part(self, rows: int) -> StepSequence:
        """This sequence's part in a step of `rows` new tokens, for which room is reserved. Dirty from here on."""
        self.begin_pass()
        return StepSequence(self.slots, self.context_tokens, rows)

    def begin_pass(self) -> None:
        """Marks the sequence dirty: KV written into private slots may not be finite until it is committed."""
        self._held.is_dirty = True

    def commit(self, tokens: Sequence[int]) -> None:
        """Adds tokens whose KV the model has just written, all finite. Whole chunks are stored in the tree."""
        self._held.is_dirty = False
        self.tokens += np.asarray(tokens, np.int32).tobytes()
        token_bytes_per_chunk = self._memory.shape.chunk_tokens * TOKEN_BYTES
        while not self._sealed and (len(self._held.path) + 1) * token_bytes_per_chunk <= len(self.tokens):
            start = len(self._held.path) * token_bytes_per_chunk
            with HeldInterrupts():
                self._publish(bytes(self.tokens[start : start + token_bytes_per_chunk]))

    def seal(self) -> None:
        """Ends the storing of chunks in the tree: tokens from here on are not worth keeping."""
        self._sealed = True

    def _publish(self, chunk: bytes) -> None:
        memory, tree, scope = self._memory, self._memory.tree, self.root.scope
        place = len(self._held.path)
        slot, size = self.slots[place], memory.shape.chunk_bytes
        key = tree.next_key(self._chain_key, chunk)
        claim, above_key, above = self._held.claim, self._chain_key, self._path_digest
        if memory.records is not None and above is None:
            above = self._digest_path()

        def store() -> Node:
            if claim is not None and claim.nodes:
                return tree.publish(claim, DEVICE, slot, size)
            return tree.insert(self.node, self.root, key, chunk, DEVICE, slot, size)

        node = into_tree(memory, scope, store)
        # The tree owns the slot by now: noted before anything else can fail.
        self._held.path.append(node)
        self._chain_key = key
        self._path_digest = None if above is None else hashlib.sha256(above + chunk).digest()
        stored = device_slot(node)
        if stored != slot:
            # Another request stored the same chunk meanwhile: read its slot, free this one.
            self.slots[place] = stored
            tree.tiers[DEVICE].reserve(scope, size)
            memory.give(scope, [slot])
            self.layout = memory.new_layout()
        tree.extend(self.lease, node)
        if stored == slot and memory.records is not None and self._path_digest is not None:
            memory.records.offer(self.root, key, above_key, self._path_digest, place + 1, chunk, slot)

    def _digest_path(self) -> bytes:
        """The path digest of all whole chunks so far, from scratch."""
        chunk_tokens = self._memory.shape.chunk_tokens
        whole = bytes(self.tokens[: len(self._held.path) * chunk_tokens * TOKEN_BYTES])
        digests = path_digests(self.root.key, whole, chunk_tokens)
        return digests[-1] if digests else self.root.key

    def crop(self, tokens: int) -> None:
        """Forgets all but the first `tokens` tokens. A shared chunk that is cut becomes a private copy.

        Raises:
            PoolExhausted: the copy needs a slot, and there is none.
        """
        if tokens < self.context_tokens:
            with HeldInterrupts():
                self._crop(tokens)

    def _crop(self, tokens: int) -> None:
        memory, tree = self._memory, self._memory.tree
        whole, rest = divmod(tokens, memory.shape.chunk_tokens)
        kept = whole + (rest > 0)
        # What follows now may be other tokens than those that were claimed.
        self._held.abandon()
        if whole >= len(self._held.path):
            self._held.give(self.slots[kept:])
            del self.slots[kept:]
        else:
            copy = self._copy_of(self.slots[whole : whole + 1], rest) if rest else []
            self._held.give(self._held.private)
            del self._held.path[whole:]
            self._held.slots = self.slots[:whole] + copy
            tree.extend(self.lease, self._held.path[-1] if self._held.path else self.root)
            self._path_digest = None
            self._chain_key = tree.chain_key(self.root.key, bytes(self.tokens), whole)
        del self.tokens[tokens * TOKEN_BYTES :]
        self.layout = memory.new_layout()

    def fork(self) -> SequenceKV:
        """A second sequence with the same KV: shared chunks stay shared, private ones are copied.

        Raises:
            PoolExhausted: no slots for the copies.
        """
        with HeldInterrupts():
            return self._fork()

    def _fork(self) -> SequenceKV:
        copies = self._copy_of(self._held.private, self._memory.shape.chunk_tokens)
        try:
            lease = self._memory.tree.lease_node(self.node)
        except BaseException:
            self._held.give(copies)
            raise
        twin = SequenceKV(
            self._memory,
            self.root,
            lease,
            list(self._held.path),
            self._chain_key,
            bytes(self.tokens),
            copies,
        )
        twin._sealed = self._sealed
        twin._held.is_dirty = self._held.is_dirty
        if self._holders is not None:
            twin.hand_over(self._holders, get_ident())
        return twin

    def _take(self, count: int, after: int | None = None) -> list[int] | None:
        """As `KvMemory.take`; for a sequence that was handed over, the engine's own are preempted if needed."""
        while True:
            slots = self._memory.take(self.root.scope, count, after)
            if slots is not None or self._holders is None or not self._holders.make_way():
                return slots

    def _copy_of(self, slots: list[int], tokens: int) -> list[int]:
        """New private slots with the first `tokens` tokens of each of `slots`."""
        copies = self._take(len(slots))
        if copies is None:
            raise PoolExhausted(
                f"copying {len(slots)} private chunks needs as many free slots and the pool of "
                f"{self._memory.pool.slots} has none to give; use fewer sequences or more memory"
            )
        try:
            for source, target in zip(slots, copies):
                self._memory.pool.copy_columns(source, target, tokens)
        except BaseException:
            self._held.give(copies)
            raise
        return copies

    def close(self, *, poisoned: bool = False) -> None:
        """Ends the lease and gives back private slots; `poisoned` ones may hold NaN and are zeroed.

        A second call does nothing.
        """
        with HeldInterrupts():
            if self._holders is not None:
                self._holders.remove(self)
                self._holders = None
            self._held.is_dirty |= poisoned
            self._held.close()


def into_tree(memory: KvMemory, scope: str, store: Callable[[], Node]) -> Node:
    """Calls `store`, which passes one slot of a request of `scope` to the tree; returns the node that it made.

    If `store` raises, the request still owns the slot.
    """
    tier, size = memory.tree.tiers[DEVICE], memory.shape.chunk_bytes
    tier.unreserve(scope, size)
    try:
        return store()
    except BaseException:
        tier.reserve(scope, size)
        raise


def open_sequence(memory: KvMemory, match: Match, tokens: bytes) -> SequenceKV:
    """A sequence that begins with what `match` found of `tokens` (int32le bytes).

    Leases the path, copies the matching columns of the partial chunk into a private one if a slot can be
    had, and claims the whole chunks of `tokens` that are left, so that others wait for them. `match` must
    have been made just now, of all tokens but the last, with nothing to wait for. Nothing is held if it raises.
    """
    tree, root = memory.tree, match.root
    with ExitStack() as undo:
        lease = tree.lease(match)
        undo.callback(tree.release, lease)
        have = match.tokens
        private: list[int] = []
        if match.partial is not None and match.partial_tokens:
            # Leased meanwhile: taking a slot may evict, and must not evict the source.
            source = tree.lease_node(match.partial)
            try:
                private = memory.take(root.scope, 1, memory.last_slot(match.node)) or []
                undo.callback(memory.give, root.scope, private)
                if private:
                    memory.pool.copy_columns(device_slot(match.partial), private[0], match.partial_tokens)
                    have += match.partial_tokens
            finally:
                tree.release(source)
        claim = tree.claim(match, tokens)
        undo.callback(tree.abandon, claim)
        sequence = SequenceKV(
            memory,
            root,
            lease,
            list(match.path),
            match.chain_key,
            tokens[: have * TOKEN_BYTES],
            private,
            claim,
        )
        undo.pop_all()
        return sequence
