"""torch's FlexAttention: all requests' rows against all nodes' tokens, under a block mask of who reads what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers.peer import Unfit

MOST_MASK = 2**27
"""(row, token) pairs for which a block mask is built."""


class FlexAttention:
    """Reads shared KV once for every tile of 128 rows; compiled per shape on a GPU, eager elsewhere."""

    name = "FlexAttention"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        try:
            from torch.nn.attention.flex_attention import flex_attention  # noqa: F401
        except ImportError:
            return f"torch {torch.__version__} has no FlexAttention"
        return None

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        shape, device = case.shape, case.pool.device
        total, rows = sum(shape.tokens), len(case.query)
        if total * rows > MOST_MASK:
            raise Unfit(f"a mask of {rows} x {total} is too large to build")
        pairs = [case.node_kv(node) for node in range(len(shape.tokens))]
        keys, values = (torch.cat([pair[side] for pair in pairs], 1)[None] for side in (0, 1))
        node_of = torch.repeat_interleave(
            torch.arange(len(shape.tokens), device=device), torch.tensor(shape.tokens, device=device)
        )
        reads = torch.zeros(len(shape.leaves), len(shape.tokens), dtype=torch.bool, device=device)
        for request, path in enumerate(shape.paths):
            reads[request, path] = True
        # Ancestors stand before their leaves, so `place` is negative there: causality is among own tokens only.
        starts, at = [], 0
        for size in shape.tokens:
            starts.append(at)
            at += size
        own_start = torch.tensor([starts[leaf] for leaf in shape.leaves], device=device)
        own_rows = shape.rows
        own_skip = torch.tensor([shape.tokens[leaf] - own_rows for leaf in shape.leaves], device=device)

        def mask(_b: Any, _h: Any, q: Any, kv: Any) -> Any:
            request = q // own_rows
            place = kv - own_start[request]
            last = own_skip[request] + q % own_rows
            return reads[request, node_of[kv]] & (place <= last)

        blocks = create_block_mask(mask, None, None, rows, total, device=str(device))
        cuda = device.type == "cuda"
        run = torch.compile(flex_attention, dynamic=False) if cuda else flex_attention
        query = case.query.transpose(0, 1)[None].contiguous()
        gqa = shape.q_heads != shape.kv_heads

        def call() -> Tensor:
            out = run(query, keys, values, block_mask=blocks, scale=case.scale, enable_gqa=gqa)
            found: Tensor = out[0].transpose(0, 1)
            return found

        return call
