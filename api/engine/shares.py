"""Each scope's part of the sequences that run, where several scopes want in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvtrie.api.engine.request import Job


@dataclass(frozen=True, slots=True)
class Shares:
    """Seats and chunks of each scope, and how many of either each may have.

    A *seat* is a place among the sequences of a step.
    """

    scopes: int
    """How many there are."""
    seats: Counter[str]
    chunks: Counter[str]
    seat_share: int
    """Equal parts of all seats, one at least."""
    chunk_share: int
    """Equal parts of all slots."""

    @classmethod
    def of(cls, running: Sequence[Job], waiting: Iterable[str], seats: int, slots: int) -> Shares:
        """Shares of scopes that have a job running, or waiting to be admitted."""
        held = Counter(job.scope for job in running)
        chunks: Counter[str] = Counter()
        for job in running:
            chunks[job.scope] += job.promised
        scopes = max(1, len({*held, *waiting}))
        return cls(scopes, held, chunks, max(1, seats // scopes), slots // scopes)

    def add(self, job: Job) -> None:
        """Notes a job that was admitted."""
        self.seats[job.scope] += 1
        self.chunks[job.scope] += job.promised

    @property
    def at_share(self) -> set[str]:
        """Scopes that have their share, or more; none where there is but one scope."""
        if self.scopes < 2:
            return set()
        return {
            scope
            for scope, seats in self.seats.items()
            if seats >= self.seat_share or self.chunks[scope] >= self.chunk_share
        }

    @property
    def has_excess(self) -> bool:
        """Whether a scope has more than its share."""
        return self.scopes > 1 and any(
            seats > self.seat_share or self.chunks[scope] > self.chunk_share
            for scope, seats in self.seats.items()
        )

    def entitles(self, job: Job, needed: int) -> bool:
        """Whether a job that needs so many chunks is within its scope's share."""
        return self.seats[job.scope] < self.seat_share and self.chunks[job.scope] + needed <= self.chunk_share

    def seat_owner(self) -> str | None:
        """The scope with most seats, if that is more than its share."""
        if not self.seats:
            return None
        scope, seats = self.seats.most_common(1)[0]
        return scope if seats > self.seat_share else None

    def chunk_owner(self) -> str | None:
        """The scope with most chunks, if that is more than its share."""
        if not self.chunks:
            return None
        scope, chunks = self.chunks.most_common(1)[0]
        return scope if chunks > self.chunk_share else None

    @property
    def excess_chunks(self) -> int:
        """Chunks that scopes have beyond their shares, together."""
        return sum(max(0, chunks - self.chunk_share) for chunks in self.chunks.values())


def youngest_of(running: Sequence[Job], scope: str) -> Job:
    """The job of a scope that gives up its place: of the least important ones, the one admitted last."""
    place = max((job.priority, place) for place, job in enumerate(running) if job.scope == scope)[1]
    return running[place]
