"""Builds FlashInfer's kernels ahead of the grid: `python -m bench.gpu.peers.flashinfer_build`.

It compiles each kernel with nvcc on first use, for a minute or more; done beside the correctness gate, this costs
no time of its own.
"""

from __future__ import annotations

import sys

import torch

from bench.gpu import ours
from bench.gpu.peers import Unfit
from bench.gpu.peers.flashinfer_cascade import FlashInferCascade
from bench.gpu.peers.flashinfer_decode import FlashInferDecode
from bench.gpu.shapes import FULL, levels


def main() -> int:
    """Runs each wrapper once for every kernel the grid will ask of it."""
    device = torch.device("cuda", 0)
    shapes = [
        levels("grouped", "build", (1, 4), (64, 64), FULL),
        levels("multi-head", "build", (1, 4), (64, 64), FULL, heads=(32, 32)),
        levels("prefill", "build", (1, 4), (64, 64), FULL, rows=64),
    ]
    for peer in (FlashInferCascade(), FlashInferDecode()):
        if (why := peer.absent(device)) is not None:
            print(why)
            return 0
        for shape in shapes:
            try:
                peer.prepare(ours.build(shape, device, "bfloat16"))()
            except Unfit:
                continue
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
