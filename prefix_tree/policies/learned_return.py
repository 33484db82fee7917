"""kvtrie's own policy: keep what is about to be asked for again, as this traffic has taught us."""

from __future__ import annotations

from collections import defaultdict
from math import log2
from typing import NamedTuple

from sortedcontainers import SortedList

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Node, Residence
from kvtrie.prefix_tree.policies.return_times import ReturnTimes, kind_of

_LEARN_EVERY = 16
"""Requests."""
_END_LEVEL = -12
"""Level of a request's last chunk: it is mostly cut off somewhere, and the next turn has another in its place."""
_SHARED = 3
"""Requests that parted at a chunk make it a shared prompt; two are a conversation's old end and its next turn."""
_NOT_SHARING = 2
_FIRST_RATE = 1000
"""Buckets of shared leaves start here, clear of the levels'."""

_Entry = tuple[int, int, Residence]
"""Number of the last request through a leaf, number of the entry, leaf."""


class _Note:
    """What the policy knows of a residence where a request ended, or where requests parted. A leaf's note goes to
    its parent when it leaves; what is between has none."""

    __slots__ = ("bucket", "entry", "first", "is_end", "kind", "last", "level", "parted", "request")

    def __init__(self) -> None:
        self.request = -1
        """Number of the last request that came through; -1 before it is known."""
        self.last = 0.0
        """Seconds: its time."""
        self.kind = 0
        self.is_end = False
        """Whether the request that stored it ended here, and nobody went on since."""
        self.parted = 0
        """Requests that went different ways from here, or from a chunk below that has left, the most of these."""
        self.first = 0.0
        """Seconds: since when `parted` counts."""
        self.level = 0
        self.bucket = 0
        self.entry: _Entry | None = None


class _Marker:
    """Left by a request at one chunk or two, cached or not, until the next request comes through either."""

    __slots__ = ("chunks", "first", "keys", "parted", "place", "turn")

    def __init__(self, turn: int, chunks: int, place: int | None, parted: int, first: float) -> None:
        self.turn = turn
        self.chunks = chunks
        """Length of the request's path."""
        self.place = place
        """Where `ReturnTimes` waits for it; None where requests part."""
        self.parted = parted
        self.first = first
        self.keys: list[bytes] = []
        """Of the chunks where it was left."""


class _TurnBefore(NamedTuple):
    """The request that this one may continue."""

    marker: _Marker
    depth: int
    """Of the marker in this one's path, from 0."""
    since: float
    """Seconds: its time."""


class LearnedReturn:
    """Evicts the leaf that is worth least to keep: expected returns per second until the best time to give up.

    Two things bring a prefix back, and a leaf is worth the better of both. A *conversation* goes on: when, and
    how likely, is learned online (`ReturnTimes`) by turn, by how much the request added and by the time since the
    turn before. A *shared prompt* is asked for by many: a chunk where three or more requests parted has the
    rate at which they came, and no more than once per time it has been silent.

    Requests leave a marker in the middle of what they added, found again by chunk key whether cached or
    not, so that turn and gap are known also where the cache was too small to keep the path. The next turn leaves
    its own there as well as in the middle of what it adds: a third question about a document shares no more with
    the second than the second with the first.
    Leaves are in buckets of equal chance, ordered by last use. In a bucket worth rises, then falls with age, so
    the least is at one of its ends, and a victim costs a look at the ends of the buckets that changed.

    Args:
        markers: most requests and shared prompts remembered.

    Raises:
        InputError: `markers` below two.
    """

    def __init__(self, markers: int = 8192) -> None:
        if markers < 2:
            raise InputError(f"this policy needs to remember requests, got markers={markers}")
        self._limit = markers
        self._markers: dict[bytes, _Marker] = {}
        """By chunk key, oldest first."""
        self._returns = ReturnTimes(markers + 1)
        self._notes: dict[Residence, _Note] = {}
        self._buckets: defaultdict[int, SortedList[_Entry]] = defaultdict(SortedList)
        self._least: dict[int, tuple[float, _Entry]] = {}
        """What is worth least in each bucket that has not changed since, as of `_now`; ties by LRU."""
        self._entries = 0
        self._queued = 0
        self._requests = 0
        self._started: float | None = None
        self._now = 0.0

    def add(self, residence: Residence) -> None:
        """See `EvictionPolicy.add`."""
        note = self._note(residence)
        if note.request < 0:
            # Not stored by a request, as in a lower tier: as good as used now, until one comes.
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
        """See `EvictionPolicy.used`; nothing, as what counts is known when the request has `finished`."""

    def finished(self, residence: Residence, matched_chunks: int) -> None:
        """A request is through: told once per request and tier, at the deepest resident chunk of its path, before
        its hold there ends. `matched_chunks` of the path were resident when it came. Its time is the node's
        `used_seconds`. Costs a look-up per chunk of the path, and a millisecond of learning every 16 requests.
        """
        self._advance(residence.node.used_seconds)
        path, tier = residence.node.path(), residence.tier
        chunks = len(path)
        matched_chunks = min(matched_chunks, chunks)
        turn_before, forks = self._recall(path)
        for depth, marker in forks.items():
            if depth >= matched_chunks:  # evicted since, and now here again
                note = self._note(_resident(path[depth], tier))
                note.parted, note.first = marker.parted, marker.first

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
        if turn_before is not None and parted < _SHARED:
            turn, gap = turn_before.marker.turn + 1, self._now - turn_before.since
            known = max(known, min(chunks, turn_before.marker.chunks - 1))

        if 0 < matched_chunks < chunks:
            # Its first new chunk is a child of what may have been a leaf.
            self._grew(_resident(path[matched_chunks - 1], tier))
        end = self._note(residence)
        end.request, end.last, end.kind = self._requests, self._now, kind_of(turn, chunks - known, gap)
        end.is_end = matched_chunks < chunks
        if parted >= _SHARED:
            self._mark(path[fork], _Marker(turn, chunks, None, parted, note.first))
        middle = path[max(0, min((matched_chunks + chunks) // 2, chunks - 2))]
        if middle.key not in self._markers:
            marker = _Marker(turn, chunks, self._returns.open(end.kind, self._now), 0, 0.0)
            self._mark(middle, marker)
            if turn > 1 and turn_before is not None and path[turn_before.depth].key not in self._markers:
                self._mark(path[turn_before.depth], marker)
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

    def _recall(self, path: list[Node]) -> tuple[_TurnBefore | None, dict[int, _Marker]]:
        """Takes up the markers along a path: the deepest that a request left (of one at two chunks, where the path
        meets it), and by depth those where requests part."""
        before: _TurnBefore | None = None
        forks: dict[int, _Marker] = {}
        for depth, node in enumerate(path):
            marker = self._markers.get(node.key)
            if marker is None:
                continue
            self._take_up(marker)
            if marker.place is None:
                forks[depth] = marker
            else:
                before = _TurnBefore(
                    marker, depth, self._returns.close(marker.place, self._now, returned=True)
                )
        return before, forks

    def _mark(self, node: Node, marker: _Marker) -> None:
        self._markers[node.key] = marker
        marker.keys.append(node.key)
        if len(self._markers) > self._limit:
            oldest = next(iter(self._markers.values()))
            self._take_up(oldest)
            if oldest.place is not None:
                self._returns.close(oldest.place, self._now, returned=False)

    def _take_up(self, marker: _Marker) -> None:
        for key in marker.keys:
            del self._markers[key]

    def _note(self, residence: Residence) -> _Note:
        note = self._notes.get(residence)
        if note is None:
            note = self._notes[residence] = _Note()
        return note

    def _grew(self, residence: Residence) -> None:
        """A chunk has a child now: it is no leaf, and no end."""
        note = self._notes.get(residence)
        if note is not None:
            note.is_end = False
            self._pull(note)

    def _hand_up(self, residence: Residence) -> None:
        """Moves a leaf's note into its parent's."""
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
        """Seconds from `then` to now; 0 if the clock was set back since, which a steady one is not."""
        return max(0.0, self._now - then)

    def _worth(self, residence: Residence) -> float:
        """Returns per second that keeping a leaf may bring."""
        note = self._notes[residence]
        silent = self._now - note.last
        worth = self._returns.worth(note.level, silent)
        if note.parted < _SHARED or note.is_end or self._started is None:
            return worth
        # A tenth of the time between requests: a burst in one instant is no infinite rate.
        seconds = self._since(note.first) + 0.1 * (self._now - self._started) / max(1, self._requests)
        return max(worth, 1 / max(1e-9, seconds / (note.parted - _NOT_SHARING), silent))


def _resident(node: Node, tier: int) -> Residence:
    residence = node.at[tier]
    assert residence is not None, "tiers are prefix-closed"
    return residence
