"""Deficit round robin over scopes, counted in tokens: a scope with many requests does not hold up another one.

Scopes take turns. Each has a *credit* in tokens. A job is charged when it is admitted, with what it costs by then:
the tokens of its prompt that are not cached, and all tokens that it may produce. A scope whose credit is above 0
may have its next job admitted, whatever that costs; once the credit is used up the next scope's turn comes. When
no scope that waits has any credit left, a new round gives each `quantum` tokens, so that a scope which had a large
job admitted sits out as many rounds as it takes to pay for it (the *surplus* form of deficit round robin, which
need not know a cost before it is due: Adiseshu, Parulkar and Varghese, SIGCOMM 1996).

Within a scope, jobs of smaller `priority` come first, and those of one priority in their order of arrival.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from itertools import count

from kvtrie.api.engine.request import Job
from kvtrie.prefix_tree.errors import InputError

QUANTUM_TOKENS = 1024
"""Default of `FairQueue`. Less than most jobs cost, so that turns are as short as jobs allow."""
_MOST_DEBTS = 1024
"""Debts of scopes without jobs are looked through whenever they have become twice as many, and at least so many."""


class _Line:
    """The jobs of one scope."""

    __slots__ = ("_heap", "_removed", "credit", "turn")

    def __init__(self, credit: int, turn: int) -> None:
        self.credit = credit
        """Tokens; the next job may be admitted while it is above 0."""
        self.turn = turn
        """Its place in a round."""
        self._heap: list[tuple[int, int, Job]] = []
        """Priority, number, job. Jobs mostly arrive in this order: then adding one costs the same however many
        there are."""
        self._removed: set[int] = set()
        """Numbers of jobs in the heap that have ended."""

    def __len__(self) -> int:
        return len(self._heap) - len(self._removed)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, number, job in self._heap if number not in self._removed)

    def add(self, job: Job) -> None:
        heappush(self._heap, (job.priority, job.number, job))

    @property
    def first(self) -> Job:
        while self._heap[0][1] in self._removed:
            self._removed.remove(heappop(self._heap)[1])
        return self._heap[0][2]

    def remove(self, job: Job) -> None:
        """Takes out the first job, or another one, which has ended and is never added again."""
        if self.first is job:
            heappop(self._heap)
        else:
            self._removed.add(job.number)
            if 2 * len(self._removed) > len(self._heap):
                self._heap = sorted((one.priority, one.number, one) for one in self)
                self._removed.clear()


class FairQueue:
    """A `WaitingQueue` that is fair to scopes.

    Args:
        quantum: tokens of credit that a round gives each scope.

    Raises:
        InputError: `quantum` below 1.
    """

    def __init__(self, quantum: int = QUANTUM_TOKENS) -> None:
        if quantum < 1:
            raise InputError(f"a round must give at least 1 token, got quantum={quantum}")
        self._quantum = quantum
        self._returned: deque[Job] = deque()
        """Preempted jobs: they come first, and were charged when they were admitted first."""
        self._ready: OrderedDict[str, _Line] = OrderedDict()
        """Scopes with jobs and credit, the one whose turn it is first."""
        self._spent: dict[str, _Line] = {}
        """Scopes with jobs, and without credit until the next round."""
        self._turns = count()
        self._debts: dict[str, tuple[int, int]] = {}
        """Of scopes without jobs: credit below 0, and the round in which they were left with it."""
        self._debts_looked_through_at = _MOST_DEBTS
        self._round = 0
        self._count = 0
        self.tokens = 0
        """See `WaitingQueue`."""

    def put(self, job: Job) -> None:
        """See `WaitingQueue`. O(1) for the one that arrived last, else O(log jobs)."""
        line = self._line(job.scope)
        if line is None:
            line = _Line(self._credit_of(job.scope), next(self._turns))
            (self._ready if line.credit > 0 else self._spent)[job.scope] = line
        line.add(job)
        self._added(job, 1)

    def put_back(self, job: Job) -> None:
        """See `WaitingQueue`."""
        self._returned.appendleft(job)
        self._added(job, 1)

    def first(self, passing_over: Collection[str] = ()) -> Job | None:
        """See `WaitingQueue`. O(1), and O(scopes) where a round begins or scopes are passed over."""
        for job in self._returned:
            if job.scope not in passing_over:
                return job
        while True:
            for scope, line in self._ready.items():
                if scope not in passing_over:
                    return line.first
            if not self._begin_round(passing_over):
                return None

    def taken(self, job: Job, tokens: int) -> None:
        """See `WaitingQueue`."""
        if self._take_returned(job):
            return
        line = self._take(job)
        line.credit -= max(1, tokens)
        if not line:
            self._drop(job.scope, line)
        elif line.credit <= 0:
            self._ready.pop(job.scope, None)
            self._spent[job.scope] = line

    def set_aside(self, job: Job) -> None:
        """See `WaitingQueue`."""
        self.remove(job)
        if job.scope in self._ready:
            self._ready.move_to_end(job.scope)

    def remove(self, job: Job) -> None:
        """See `WaitingQueue`."""
        if self._take_returned(job):
            return
        line = self._take(job)
        if not line:
            self._drop(job.scope, line)

    @property
    def scopes(self) -> Collection[str]:
        """See `WaitingQueue`."""
        return {*self._ready, *self._spent, *(job.scope for job in self._returned)}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        yield from self._returned
        for lines in (self._ready, self._spent):
            for line in lines.values():
                yield from line

    # ---- lines

    def _line(self, scope: str) -> _Line | None:
        return self._ready.get(scope) or self._spent.get(scope)

    def _take(self, job: Job) -> _Line:
        line = self._line(job.scope)
        assert line is not None, f"no job of scope {job.scope} waits"
        line.remove(job)
        self._added(job, -1)
        return line

    def _take_returned(self, job: Job) -> bool:
        if job not in self._returned:
            return False
        self._returned.remove(job)
        self._added(job, -1)
        return True

    def _added(self, job: Job, count: int) -> None:
        self._count += count
        self.tokens += count * job.weight_tokens
        if not self._count:
            # With nobody left to be fair to, nothing is owed.
            self._debts.clear()

    # ---- credit

    def _credit_of(self, scope: str) -> int:
        """The credit of a scope that has just got a job: a round's, less what it still owes."""
        owed, since = self._debts.pop(scope, (0, self._round))
        return min(self._quantum, self._quantum + owed + (self._round - since) * self._quantum)

    def _drop(self, scope: str, line: _Line) -> None:
        """Forgets a scope without jobs, but for what it owes."""
        self._ready.pop(scope, None)
        self._spent.pop(scope, None)
        if line.credit < 0 and self._count:
            self._debts[scope] = line.credit, self._round
            if len(self._debts) > self._debts_looked_through_at:
                self._debts = {
                    owing: (owed, since)
                    for owing, (owed, since) in self._debts.items()
                    if owed + (self._round - since) * self._quantum < 0
                }
                self._debts_looked_through_at = max(_MOST_DEBTS, 2 * len(self._debts))

    def _begin_round(self, passing_over: Collection[str]) -> bool:
        """Gives all scopes as many rounds' credit as it takes for one to have some; False where nobody waits."""
        rounds = min(
            (
                -line.credit // self._quantum + 1
                for scope, line in self._spent.items()
                if scope not in passing_over
            ),
            default=0,
        )
        if not rounds:
            return False
        self._round += rounds
        for line in (*self._ready.values(), *self._spent.values()):
            line.credit = min(self._quantum, line.credit + rounds * self._quantum)
        begun = [(line.turn, scope) for scope, line in self._spent.items() if line.credit > 0]
        for _, scope in sorted(begun):
            self._ready[scope] = self._spent.pop(scope)
        return True
