"""The structure of the cache: namespaces, chunk keys, the tree, and the plan. Plain integers, no torch."""

from kvtrie.prefix_tree.check import check
from kvtrie.prefix_tree.errors import (
    AccessDenied,
    CapacityError,
    InputError,
    KvtrieError,
    LibraryChanged,
    ModelOutputError,
    PackageMissing,
    PinBudgetExceeded,
    PoolExhausted,
    RecordError,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnsupportedModel,
)
from kvtrie.prefix_tree.held_paths import Lease, Pin
from kvtrie.prefix_tree.match import Match
from kvtrie.prefix_tree.namespace import Namespace
from kvtrie.prefix_tree.node import Claim, Node, Residence, Root
from kvtrie.prefix_tree.plan import Plan, PlanSequence, Run
from kvtrie.prefix_tree.plan_check import check_plan
from kvtrie.prefix_tree.planner import Planner, make_plan
from kvtrie.prefix_tree.policies import LeastRecentlyUsed
from kvtrie.prefix_tree.policy import EvictionPolicy
from kvtrie.prefix_tree.shape import ChunkShape
from kvtrie.prefix_tree.snapshot import Snapshot
from kvtrie.prefix_tree.tier import Tier
from kvtrie.prefix_tree.tree import Evicted, PrefixTree
from kvtrie.prefix_tree.tree_copy import TreeCopy, copy_tree, take_snapshot

__all__ = [
    "AccessDenied",
    "CapacityError",
    "ChunkShape",
    "Claim",
    "Evicted",
    "EvictionPolicy",
    "InputError",
    "KvtrieError",
    "Lease",
    "LeastRecentlyUsed",
    "LibraryChanged",
    "Match",
    "ModelOutputError",
    "Namespace",
    "Node",
    "PackageMissing",
    "Pin",
    "PinBudgetExceeded",
    "Plan",
    "PlanSequence",
    "Planner",
    "PoolExhausted",
    "PrefixTree",
    "RecordError",
    "Residence",
    "Root",
    "Run",
    "Snapshot",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "Tier",
    "TreeCopy",
    "UnsupportedModel",
    "check",
    "check_plan",
    "copy_tree",
    "make_plan",
    "take_snapshot",
]
