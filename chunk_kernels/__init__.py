"""Everything that computes on KV: the device pool, steps as work items, and the two-phase attention."""

from kvtrie.chunk_kernels.attend import attend, check_served
from kvtrie.chunk_kernels.decode_lanes import DecodeLanes, LaneSequence
from kvtrie.chunk_kernels.launch_plan import LaunchPlan
from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.reference import attend_reference
from kvtrie.chunk_kernels.slot_allocator import SlotAllocator
from kvtrie.chunk_kernels.step import Step, StepSequence, prepare_step
from kvtrie.chunk_kernels.variant import PLAIN, Variant
from kvtrie.chunk_kernels.write import write_kv, write_triton

__all__ = [
    "ChunkPool",
    "DecodeLanes",
    "LaneSequence",
    "LaunchPlan",
    "PLAIN",
    "SlotAllocator",
    "Step",
    "StepSequence",
    "Variant",
    "attend",
    "attend_reference",
    "check_served",
    "prepare_step",
    "write_kv",
    "write_triton",
]
