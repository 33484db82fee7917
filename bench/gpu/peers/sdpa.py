"""torch's `scaled_dot_product_attention`, flash backend, on KV replicated for every request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.ours import Case
from bench.gpu.peers.peer import Unfit, check_replicated_fits

MOST_CALLS = 64


class Sdpa:
    """One call per distinct length, because the flash backend takes no mask."""

    name = "SDPA flash, replicated"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        return None

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        shape = case.shape
        check_replicated_fits(shape, case.pool.device)
        by_length = sorted(range(len(shape.leaves)), key=shape.lengths.__getitem__)
        groups = [list(requests) for _, requests in groupby(by_length, key=shape.lengths.__getitem__)]
        if len(groups) > MOST_CALLS:
            raise Unfit(f"{len(groups)} distinct lengths would be as many calls")
        if case.pool.device.type == "cuda" and case.pool.dtype == torch.float32:
            raise Unfit("flash has no fp32")
        calls = [self._call(case, requests) for requests in groups]
        order = [
            row
            for requests in groups
            for request in requests
            for row in range(request * shape.rows, (request + 1) * shape.rows)
        ]
        back = torch.empty(len(order), dtype=torch.int64, device=case.pool.device)
        back[torch.tensor(order, device=case.pool.device)] = torch.arange(len(order), device=case.pool.device)
        if len(calls) == 1:
            return calls[0]
        return lambda: torch.cat([call() for call in calls])[back]

    def _call(self, case: Case, requests: list[int]) -> Callable[[], Tensor]:
        shape, cuda = case.shape, case.pool.device.type == "cuda"
        pairs = [case.request_kv(request) for request in requests]
        keys, values = (torch.stack([pair[side] for pair in pairs]) for side in (0, 1))
        del pairs
        query = torch.stack(
            [case.query[request * shape.rows : (request + 1) * shape.rows] for request in requests]
        ).transpose(1, 2)
        options: dict[str, Any] = {"scale": case.scale, "enable_gqa": shape.q_heads != shape.kv_heads}
        if shape.rows > 1:
            # The new tokens stand at the end of the keys, where `is_causal` would put them at the start.
            options["attn_mask"] = causal_lower_right(shape.rows, keys.shape[2])
            if options.pop("enable_gqa"):
                group = shape.q_heads // shape.kv_heads
                keys, values = (part.repeat_interleave(group, 1) for part in (keys, values))

        def call() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if cuda else nullcontext():
                out = scaled_dot_product_attention(query, keys, values, **options)
            return out.transpose(1, 2).reshape(-1, shape.q_heads, shape.dim)

        return call
