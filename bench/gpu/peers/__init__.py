"""What a user would run instead, one file per peer. Each imports what is installed and says so when it is not."""

from __future__ import annotations

from bench.gpu.peers.flashinfer_cascade import FlashInferCascade
from bench.gpu.peers.flashinfer_decode import FlashInferDecode
from bench.gpu.peers.flex import FlexAttention
from bench.gpu.peers.peer import Peer, Unfit, difference
from bench.gpu.peers.plain_paged import PlainPaged
from bench.gpu.peers.sdpa import Sdpa
from bench.gpu.peers.torch_two_phase import TorchTwoPhase
from bench.gpu.peers.varlen import Varlen

__all__ = ["PEERS", "SLOW_PEERS", "Peer", "Unfit", "difference"]

PEERS: tuple[Peer, ...] = (
    PlainPaged(),
    Sdpa(),
    TorchTwoPhase(),
    Varlen(),
    FlashInferCascade(),
    FlashInferDecode(),
)
SLOW_PEERS: tuple[Peer, ...] = (FlexAttention(),)
"""Compile for each shape: timed last, and only on shapes that say so."""
