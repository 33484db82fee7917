"""What int8 and fp8 KV cost in precision: attention over a quantised pool against the same pool raw.

`python -m bench.quantisation`. That reading stored bytes is right is tested (`tests/chunk_kernels/
test_quantised_attend.py`, fp32 rounding); this is the error of storing them, which no test bends. Data: random
normal vectors, and the same with keys that have outlier channels, as KIVI (arXiv 2402.02750) finds in models.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from bench.measure import provenance
from kvtrie.chunk_kernels import ChunkPool, StepSequence, attend_reference, write_kv
from kvtrie.prefix_tree import ChunkShape
from kvtrie.prefix_tree.shape import KV_FORMATS

KV_HEADS, GROUP, DIM, CHUNK_TOKENS = 8, 4, 128, 64
CONTEXT_TOKENS = 2048
ROWS = 16
OUTLIER_CHANNELS = 4
OUTLIER_FACTOR = 10.0


def run(dtype: str) -> dict[str, float]:
    """Errors by format and data; relative to the raw pool's, so that `dtype`'s own rounding is part of both."""
    figures: dict[str, float] = {}
    for data in ("normal", "outlier channels"):
        torch.manual_seed(0)
        tokens = CONTEXT_TOKENS + ROWS
        key, value = torch.randn(tokens, KV_HEADS, DIM), torch.randn(tokens, KV_HEADS, DIM)
        # Queries that some keys answer to: else softmax averages every error away.
        query = key[torch.randperm(tokens)[:ROWS]].repeat_interleave(GROUP, 1)
        query += torch.randn(query.shape)
        if data != "normal":
            key[..., :OUTLIER_CHANNELS] *= OUTLIER_FACTOR
        exact, exact_lse = _attended(query, key, value, dtype, "raw")
        for kv_format in KV_FORMATS[1:]:
            shape = _shape(dtype, kv_format)
            out, lse = _attended(query, key, value, dtype, kv_format)
            where = f"{kv_format}, {data}"
            figures[f"{where}: output rms error / rms"] = float(
                (out - exact).square().mean().sqrt() / exact.square().mean().sqrt()
            )
            figures[f"{where}: output max error"] = float((out - exact).abs().max())
            figures[f"{where}: lse max error"] = float((lse - exact_lse).abs().max())
            figures[f"{where}: bytes / raw bytes"] = shape.chunk_bytes / _shape(dtype, "raw").chunk_bytes
    return figures


def _shape(dtype: str, kv_format: str) -> ChunkShape:
    return ChunkShape(1, KV_HEADS, CHUNK_TOKENS, DIM, DIM, dtype, kv_format)


def _attended(query: Tensor, key: Tensor, value: Tensor, dtype: str, kv_format: str) -> tuple[Tensor, Tensor]:
    tokens = key.shape[0]
    slots = -(-tokens // CHUNK_TOKENS)
    pool = ChunkPool(_shape(dtype, kv_format), slots)
    write_kv(pool, 0, torch.arange(tokens), key.to(pool.dtype), value.to(pool.dtype))
    sequence = StepSequence(list(range(slots)), CONTEXT_TOKENS, ROWS)
    return attend_reference(query.to(pool.dtype), pool, 0, [sequence], DIM**-0.5)


def main() -> None:
    """Entry point of `python -m bench.quantisation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    args = parser.parse_args()
    for name, value in run(args.dtype).items():
        print(f"{name:46} {value:10.2e}")
    made = provenance()
    print(
        f"{args.dtype}, {CONTEXT_TOKENS} + {ROWS} tokens, {KV_HEADS * GROUP}/{KV_HEADS} heads of {DIM}; "
        f"{made['machine']}, commit {made['commit']}"
    )


if __name__ == "__main__":
    main()
