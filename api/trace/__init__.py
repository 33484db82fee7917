"""The trace lab: traces of real traffic, replayed through the tree that serves. No torch.

reader (one file per form) -> TraceRequest ... -> Trace -> replay(tree, policy, capacity) -> ReplayResult
                                                    └────> reuse distances: LRU at every capacity
engine, sidecar -> TraceRecorder -> request log -> reader
                -> WhatIf (SHARDS per scope) -> "twice the memory: 62% -> 71%"
"""

from kvtrie.api.trace.open_trace import open_trace
from kvtrie.api.trace.replay import ReplayResult, replay
from kvtrie.api.trace.request import TraceReader, TraceRequest
from kvtrie.api.trace.trace import Trace, gather

__all__ = [
    "ReplayResult",
    "Trace",
    "TraceReader",
    "TraceRequest",
    "gather",
    "open_trace",
    "replay",
]
