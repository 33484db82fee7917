"""kvtrie's own policy: evicts the leaf that is least likely to be used again soon, as learned from the requests."""

from __future__ import annotations

from collections import defaultdict
from math import log2

from sortedcontainers import SortedList

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Node, Residence
from kvtrie.prefix_tree.policies.return_markers import Marker, ReturnMarkers
from kvtrie.prefix_tree.policies.return_times import ReturnTimes, kind_of

_LEARN_EVERY = 16
"""Requests between two updates of `ReturnTimes`."""
_END_LEVEL = -12
"""Level of a request's last chunk. It is seldom reused: the next turn usually differs from somewhere inside it
on."""
_SHARED = 3
"""A chunk after which at least this many requests parted counts as a shared prompt. Two would not do: an old end
and the next turn of one conversation also part."""
_NOT_SHARING = 2
"""Subtracted from the parted requests before their rate is taken: two of them may be one conversation's, as
above."""
_FIRST_RATE = 1000
"""Number of the first bucket of shared prompts; buckets of levels have numbers of `ReturnTimes.level`."""

_Entry = tuple[int, int, Residence]
"""Number of the last request through a leaf, number of the entry, leaf."""


class _Note:
    """A note on a residence where a request ended, or where requests parted; residences between have none. When a
    leaf is evicted, its note is merged into its parent's."""

    __slots__ = ("bucket", "entry", "first", "is_end", "kind", "last", "level", "parted", "request")

    def __init__(self) -> None:
        self.request = -1
        """Number of the last request that came through; -1 before it is known."""
        self.last = 0.0
        """Time of that request, in seconds of the steady clock."""
        self.kind = 0
        """Its `kind_of`."""
        self.is_end = False
        """Whether the request that stored it ended here, and no request has continued it since."""
        self.parted = 0
        """Requests that parted here (continued with different chunks), or at an evicted chunk below if more did
        there."""
        self.first = 0.0
        """Time of the first of these requests, in seconds of the steady clock."""
        self.level = 0
        """Its kind's level when it was queued."""
        self.bucket = 0
        """The bucket it was queued in."""
        self.entry: _Entry | None = None
        """Its entry in that bucket; None while it is not queued."""


class LearnedReturn:
    """Evicts the leaf with the least worth: expected returns per second until the best time to give it up.

    A *return* is a later request through the leaf. There are two reasons for one, and a leaf is worth the larger
    of:

    * *A conversation continues.* The chance of that at each age is learned online (`ReturnTimes`), by kind of
      request: its turn, the chunks it added, and the time since the turn before.
    * *A shared prompt is used by many.* A chunk where three or more requests parted is worth the rate of these
      requests, but at most one per time since the last.

    Each request leaves a marker in the middle of the chunks it added, under their chunk key (`return_markers.py`).
    A marker outlives the chunk, so turn and gap are known even where the cache was too small to keep the path. A
    later turn also leaves its marker where it found the one before: a third question about a document shares no
    more with the second than the second with the first.

    Leaves are kept in buckets of equal chance, ordered by last use. Within a bucket the worth rises with age, then
    falls, so the least is at one of its two ends, and a victim costs a look at the ends of the changed buckets.

    Args:
        markers: most requests and shared prompts remembered.

    Raises:
        InputError: `markers` below two.
    """

    def __init__(self, markers: int = 8192) -> None:
        if markers < 2:
            raise InputError(
                f"this policy remembers requests, so it needs at least 2 markers; got markers={markers}"
            )
        self._returns = ReturnTimes(markers + 1)
        self._markers = ReturnMarkers(self._returns, markers)
        self._notes: dict[Residence, _Note] = {}
        self._buckets: defaultdict[int, SortedList[_Entry]] = defaultdict(SortedList)
        self._least: dict[int, tuple[float, _Entry]] = {}
        """The leaf of least worth at `_now` in each bucket that has not changed since; ties by LRU."""
        self._entries = 0
        self._queued = 0
        self._requests = 0
        self._started: float | None = None
        self._now = 0.0

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        note = self._note(residence)
        if note.request < 0:
            # Not stored by a request, as in a lower tier: counts as used now, until a request uses it.
            note.request, note.last = self._requests, self._now
        if note.entry is None:
            self._push(residence, note)

    def discard(self, residence: Residence) -> None:
        """See `EvictionPolicy.discard`."""
        note = self._notes.get(residence)
        if note is not None:
            self._pull(note)
            if residence.children == 0:
                self._hand_up(residence)

    def used(self, residence: Residence, tick: int) -> None:
        """See `EvictionPolicy.used`. Does nothing: a request counts when it has `finished`."""

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """See `EvictionPolicy.finished`. Costs a look-up per chunk of the path, and a millisecond of learning every
        16 requests.
        """
        # 1. The time is the request's, and the path's markers say what was there before it.
        self._advance(residence.node.used_seconds)
        path, tier = residence.node.path(), residence.tier
        chunks = len(path)
        matched_chunks = min(matched_chunks, chunks)
        turn_before, forks = self._markers.recall(path, self._now)
        for depth, marker in forks.items():
            if depth >= matched_chunks:  # a fork that was evicted, and that this request has stored again
                note = self._note(_resident(path[depth], tier))
                note.parted, note.first = marker.parted, marker.first

        # 2. Where this request parted from others: one more request that did so there.
        turn, gap, parted = 1, 0.0, 0
        parting = max(forks, default=-1)
        known = max(matched_chunks, parting + 1)
        fork = max(matched_chunks - 1, parting, turn_before.depth if turn_before else -1)
        if fork >= 0:
            note = self._note(_resident(path[fork], tier))
            if note.parted == 0:
                note.first = path[fork].created_seconds
            seen = forks[fork].parted if fork in forks else 0
            note.parted = parted = max(1, note.parted, seen) + 1

        # 3. The next turn of a conversation, unless the fork is a shared prompt.
        if turn_before is not None and parted < _SHARED:
            turn, gap = turn_before.marker.turn + 1, self._now - turn_before.since
            known = max(known, min(chunks, turn_before.marker.chunks - 1))

        # 4. Note the request at the end of its path.
        if 0 < matched_chunks < chunks:
            # Its first new chunk is a child of a chunk that may have been a leaf.
            self._grew(_resident(path[matched_chunks - 1], tier))
        end = self._note(residence)
        end.request, end.last, end.kind = self._requests, self._now, kind_of(turn, chunks - known, gap)
        end.is_end = matched_chunks < chunks

        # 5. Leave markers: at the fork, in the middle of what is new, and where the turn before left its own.
        if parted >= _SHARED:
            self._markers.mark(path[fork], Marker(turn, chunks, None, parted, note.first), self._now)
        middle = path[max(0, min((matched_chunks + chunks) // 2, chunks - 2))]
        if middle not in self._markers:
            marker = Marker(turn, chunks, self._returns.open(end.kind, self._now), 0, 0.0)
            self._markers.mark(middle, marker, self._now)
            if turn > 1 and turn_before is not None and path[turn_before.depth] not in self._markers:
                self._markers.mark(path[turn_before.depth], marker, self._now)

        # 6. If the end is queued already, queue it anew: its chance has changed.
        if end.entry is not None:
            self._pull(end)
            self._push(residence, end)
        self._requests += 1

    def victim(self) -> Residence | None:
        """See `EvictionPolicy.victim`."""
        while self._queued:
            for bucket in [b for b in self._buckets if b not in self._least]:
                entries = self._buckets[bucket]
                self._least[bucket] = min((self._worth(end[2]), end) for end in (entries[0], entries[-1]))
            residence = min(self._least.values())[1][2]
            self._pull(self._notes[residence])
            if residence.evictable:
                self._hand_up(residence)
                return residence
        return None

    def __contains__(self, residence: Residence) -> bool:
        note = self._notes.get(residence)
        return note is not None and note.entry is not None

    def __len__(self) -> int:
        return self._queued

    def _advance(self, now: float) -> None:
        if self._started is None:
            self._started = now
        if now > self._now:
            self._now = now
            self._least.clear()
        if self._requests % _LEARN_EVERY == 0:
            self._returns.learn(self._now)
            self._least.clear()

    def _note(self, residence: Residence) -> _Note:
        note = self._notes.get(residence)
        if note is None:
            note = self._notes[residence] = _Note()
        return note

    def _grew(self, residence: Residence) -> None:
        """A chunk has got a child: it is neither a leaf nor an end any more."""
        note = self._notes.get(residence)
        if note is not None:
            note.is_end = False
            self._pull(note)

    def _hand_up(self, residence: Residence) -> None:
        """Merges the note of an evicted leaf into its parent's."""
        note, parent = self._notes.pop(residence), residence.node.parent
        above = None if parent is None else parent.at[residence.tier]
        if above is None:
            return
        inherits = self._note(above)
        self._pull(inherits)  # queued before it had children
        if note.request > inherits.request:
            inherits.request, inherits.last, inherits.kind = note.request, note.last, note.kind
        if note.parted > inherits.parted:
            inherits.parted, inherits.first = note.parted, note.first

    def _push(self, residence: Residence, note: _Note) -> None:
        note.level = note.bucket = _END_LEVEL if note.is_end else self._returns.level(note.kind)
        if note.parted >= _SHARED and not note.is_end:
            seconds = (self._since(note.first) + 1e-3) / (note.parted - 1)
            note.bucket = _FIRST_RATE + int(2 * log2(seconds))
        self._entries += 1
        note.entry = (note.request, self._entries, residence)
        self._buckets[note.bucket].add(note.entry)
        self._least.pop(note.bucket, None)
        self._queued += 1

    def _pull(self, note: _Note) -> None:
        if note.entry is None:
            return
        entries = self._buckets[note.bucket]
        entries.remove(note.entry)
        if not entries:
            del self._buckets[note.bucket]
        self._least.pop(note.bucket, None)
        note.entry = None
        self._queued -= 1

    def _since(self, then: float) -> float:
        """Seconds from `then` to now; never below 0."""
        return max(0.0, self._now - then)

    def _worth(self, residence: Residence) -> float:
        """Expected returns per second from keeping a leaf."""
        note = self._notes[residence]
        silent = self._now - note.last
        worth = self._returns.worth(note.level, silent)
        if note.parted < _SHARED or note.is_end or self._started is None:
            return worth
        # Plus a tenth of the mean time between requests, so that a burst in one instant gives no infinite rate.
        seconds = self._since(note.first) + 0.1 * (self._now - self._started) / max(1, self._requests)
        return max(worth, 1 / max(1e-9, seconds / (note.parted - _NOT_SHARING), silent))


def _resident(node: Node, tier: int) -> Residence:
    residence = node.at[tier]
    assert residence is not None, "tiers are prefix-closed"
    return residence
