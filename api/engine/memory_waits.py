"""Who can free memory for a request that finds no room, and which request fails where nobody can."""

from __future__ import annotations

from collections.abc import Collection
from threading import get_ident

from kvtrie.api.engine.handed_over import HandedOver
from kvtrie.api.engine.kv_memory import DEVICE, KvMemory
from kvtrie.api.engine.request import Job
from kvtrie.api.engine.waits import Waits
from kvtrie.prefix_tree.errors import PoolExhausted


class MemoryWaits:
    """Looks at what holds memory. Its owner holds the engine's lock.

    Args:
        memory: where KV is.
        holders: sequences that left the engine, and the threads that hold them.
        waits: calls that wait, by thread.
    """

    def __init__(self, memory: KvMemory, holders: HandedOver, waits: Waits) -> None:
        self._memory = memory
        self._holders = holders
        self._waits = waits

    def held(self) -> tuple[int, int]:
        """Holds on paths, and slots that are not free: with less of either, a job may find room that found none."""
        tree, pool = self._memory.tree, self._memory.pool
        tree.expire_pins()
        return len(tree.leases) + len(tree.pins), pool.slots - pool.free_slots.free

    def at_fault(self, job: Job, others: Collection[Job]) -> Job | None:
        """The job to end because no thread that holds memory can get on; None where one can.

        A thread cannot that waits for a job of this engine. Where there is such a job by a thread that itself holds
        memory, that one is at fault, and `job`, which found no room, may find some afterwards.
        """
        holders = self._holders.threads()
        if any(not self._is_stuck(thread, others) for thread in holders):
            return None
        return next((other for other in (job, *others) if other.completion.thread in holders), job)

    def can_others_get_on(self, jobs: Collection[Job]) -> bool:
        """Whether another thread than this one holds memory that was handed over, and can go on with it."""
        others = self._holders.threads() - {get_ident()}
        return any(not self._is_stuck(thread, jobs) for thread in others)

    def _is_stuck(self, thread: int, jobs: Collection[Job]) -> bool:
        """Whether a thread waits for jobs that are not done, or for memory."""
        if self._waits.is_waiting(thread):
            return True
        # By steps of its own: `step` in a loop does, and knows nothing to do between them.
        return thread == get_ident() and any(job.completion.thread == thread for job in jobs)

    def exhausted(self, job: Job) -> PoolExhausted:
        """The error of a job that finds no room, and that nobody helps."""
        tokens = len(job.token_bytes) // 4
        if job.completion.thread in self._holders.threads():
            return PoolExhausted(
                f"no slot can be freed for a sequence of {tokens} tokens: the thread that asks holds the memory "
                "itself, in generate() or by a batch of prompts, and waits for this; ask outside of it, or raise "
                "memory="
            )
        held = self._memory.tree.tiers[DEVICE].used_bytes
        return PoolExhausted(
            f"no slot can be freed for a sequence of {tokens} tokens: pins and sequences of generate() hold the "
            f"pool ({held} bytes in the tree); unpin, or raise memory="
        )
