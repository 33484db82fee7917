"""torch's `varlen_attn`: one call over all requests of uneven lengths, on KV replicated for every request."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers.peer import check_replicated_fits


class Varlen:
    """Its arguments changed between torch releases, so they are asked of the installed one."""

    name = "varlen_attn, replicated"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        try:
            from torch.nn.attention.varlen import varlen_attn  # noqa: F401
        except ImportError:
            return f"torch {torch.__version__} has no varlen_attn"
        return None if device.type == "cuda" else "varlen_attn runs on a GPU only"

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        from torch.nn.attention.varlen import varlen_attn

        shape, device = case.shape, case.pool.device
        check_replicated_fits(shape, device)
        pairs = [case.request_kv(request) for request in range(len(shape.leaves))]
        keys, values = (
            torch.cat([pair[side].transpose(0, 1) for pair in pairs]).contiguous() for side in (0, 1)
        )
        del pairs
        starts = torch.tensor([0, *accumulate(shape.lengths)], dtype=torch.int32, device=device)
        rows = torch.arange(0, len(case.query) + 1, shape.rows, dtype=torch.int32, device=device)
        query = case.query.contiguous()
        accepted = inspect.signature(varlen_attn).parameters
        options = _options(accepted, case)
        most = max(shape.lengths)

        def call(keys: Tensor = keys, values: Tensor = values, options: dict[str, Any] = options) -> Tensor:
            found: Tensor = varlen_attn(query, keys, values, rows, starts, shape.rows, most, **options)
            return found

        if shape.q_heads == shape.kv_heads:
            return call
        try:
            call()
        except (RuntimeError, ValueError):
            # Releases before `enable_gqa` may want as many key heads as query heads.
            group = shape.q_heads // shape.kv_heads
            wide = [side.repeat_interleave(group, 1) for side in (keys, values)]
            narrow = {name: value for name, value in options.items() if name != "enable_gqa"}
            return lambda: call(*wide, narrow)
        return call


def _options(accepted: Any, case: Case) -> dict[str, Any]:
    shape = case.shape
    options: dict[str, Any] = {}
    if "scale" in accepted:
        options["scale"] = case.scale
    # Without it the default is dim ** -0.5, which is what the grid uses.
    if "enable_gqa" in accepted and shape.q_heads != shape.kv_heads:
        options["enable_gqa"] = True
    if shape.rows > 1:
        if "window_size" in accepted:
            options["window_size"] = (-1, 0)
        else:
            options["is_causal"] = True
    return options
