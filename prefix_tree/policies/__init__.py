"""Eviction policies, one file each; `named.py` lists them by name."""

from kvtrie.prefix_tree.policies.arc import AdaptiveReplacement
from kvtrie.prefix_tree.policies.gdsf import GreedyDualSizeFrequency, RecomputeSeconds
from kvtrie.prefix_tree.policies.learned_return import LearnedReturn
from kvtrie.prefix_tree.policies.lfu import LeastFrequentlyUsed
from kvtrie.prefix_tree.policies.lfu_aging import LfuWithAging
from kvtrie.prefix_tree.policies.lru import LeastRecentlyUsed
from kvtrie.prefix_tree.policies.named import policy_named
from kvtrie.prefix_tree.policies.priority import PriorityWithExpiry
from kvtrie.prefix_tree.policies.s3_fifo import S3Fifo
from kvtrie.prefix_tree.policies.slru import SegmentedLru
from kvtrie.prefix_tree.policies.two_queue import TwoQueue

__all__ = [
    "AdaptiveReplacement",
    "GreedyDualSizeFrequency",
    "LearnedReturn",
    "LeastFrequentlyUsed",
    "LeastRecentlyUsed",
    "LfuWithAging",
    "PriorityWithExpiry",
    "RecomputeSeconds",
    "S3Fifo",
    "SegmentedLru",
    "TwoQueue",
    "policy_named",
]
