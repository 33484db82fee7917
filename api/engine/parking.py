"""Jobs that wait for a chunk which another job has claimed: not looked at until it is there, or given up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kvtrie.api.engine.request import Job
from kvtrie.prefix_tree import Claim, Node


class Parking:
    """Jobs by the chunk that they wait for. Its owner holds the engine's lock."""

    def __init__(self) -> None:
        self._lines: dict[Node, dict[str, OrderedDict[Job, None]]] = {}
        """By chunk and scope, in the order in which the jobs were parked."""
        self._count = 0
        self.tokens = 0
        """`Job.weight_tokens` of all jobs here."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        for lines in self._lines.values():
            for line in lines.values():
                yield from line

    @property
    def claims(self) -> set[Claim]:
        """Claims that jobs here wait for."""
        return {node.claim for node in self._lines if node.claim is not None}

    def park(self, job: Job, node: Node) -> None:
        """Lets a job wait for a chunk."""
        job.awaits = node
        self._lines.setdefault(node, {}).setdefault(job.scope, OrderedDict())[job] = None
        self._count += 1
        self.tokens += job.weight_tokens

    def remove(self, job: Job) -> None:
        """Takes a job out."""
        node, job.awaits = job.awaits, None
        assert node is not None
        lines = self._lines[node]
        del lines[job.scope][job]
        if not lines[job.scope]:
            del lines[job.scope]
        if not lines:
            del self._lines[node]
        self._count -= 1
        self.tokens -= job.weight_tokens

    def release(self, most: int) -> list[Job]:
        """Takes out jobs whose chunk nobody claims any more: of each scope and chunk at most so many.

        The rest follows at the next calls. More than can be admitted in a step need not be looked at.
        """
        freed = [
            job
            for node, lines in self._lines.items()
            if node.claim is None
            for line in lines.values()
            for job, _ in zip(line, range(most))
        ]
        for job in freed:
            self.remove(job)
        return freed
