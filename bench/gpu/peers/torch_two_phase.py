"""The two phases composed from torch operations, as Hydragen (arXiv 2402.05099) composes them.

Every level's nodes of equal size and reader count are one batched flash call over all their readers' rows and
query-group heads; the partials of a row merge by their log-sum-exps. Generalised from one prefix to a forest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers.peer import Unfit

MOST_CALLS = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes computed by one batched call."""

    rows: Tensor
    """int64 `[nodes, readers * rows]`"""
    keys: Tensor
    """`[nodes, kv_heads, tokens, dim]`"""
    values: Tensor
    causal: bool
    """The new tokens among themselves."""
    level: int
    """Which of the merged partials it fills."""
    covers: bool
    """All rows, in order: nothing needs gathering or scattering."""


class TorchTwoPhase:
    """Dense attention over what is shared, then over what is not, then a merge."""

    name = "two phases in torch ops"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        return None

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        shape, device = case.shape, case.pool.device
        parts = _parts(case)
        if len(parts) > MOST_CALLS:
            raise Unfit(f"the forest is too uneven: {len(parts)} calls")
        total, depth = len(shape.leaves) * shape.rows, max(part.level for part in parts) + 1
        uneven = {part.level for part in parts if not part.covers}
        # Rows that a level does not reach keep out 0 and lse -inf.
        outs = {level: torch.zeros(total, shape.q_heads, shape.dim, device=device) for level in uneven}
        lses = {level: torch.full((total, shape.q_heads), -torch.inf, device=device) for level in uneven}

        def call() -> Tensor:
            found: dict[int, tuple[Tensor, Tensor]] = {}
            for part in parts:
                out, lse = _partial(case, part)
                if part.covers:
                    found[part.level] = out, lse
                    continue
                rows = part.rows.flatten()
                outs[part.level][rows], lses[part.level][rows] = out.float(), lse
                found[part.level] = outs[part.level], lses[part.level]
            if depth == 1:
                return found[0][0].to(case.query.dtype)
            weights = torch.softmax(torch.stack([found[level][1] for level in range(depth)]), 0)
            merged = found[0][0] * weights[0, ..., None]
            for level in range(1, depth):
                merged.addcmul_(found[level][0].float(), weights[level, ..., None])
            return merged.to(case.query.dtype)

        return call


def _parts(case: Case) -> list[Part]:
    shape, device = case.shape, case.pool.device
    readers, leaves = shape.readers, set(shape.leaves)
    depth_of: list[int] = []
    for parent in shape.parents:
        depth_of.append(depth_of[parent] + 1 if parent >= 0 else 0)
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for node, tokens in enumerate(shape.tokens):
        if shape.rows > 1 and node in leaves and tokens != shape.rows:
            raise Unfit("a prefill's own node must be its new tokens")
        alike[depth_of[node], tokens, len(readers[node])].append(node)
    found = []
    for (level, _, _), nodes in alike.items():
        rows = [
            [
                row
                for request in readers[node]
                for row in range(request * shape.rows, (request + 1) * shape.rows)
            ]
            for node in nodes
        ]
        pairs = [case.node_kv(node) for node in nodes]
        found.append(
            Part(
                torch.tensor(rows, device=device),
                torch.stack([k for k, _ in pairs]),
                torch.stack([v for _, v in pairs]),
                shape.rows > 1 and nodes[0] in leaves,
                level,
                [row for own in rows for row in own] == list(range(len(case.query))),
            )
        )
    return found


def _partial(case: Case, part: Part) -> tuple[Tensor, Tensor]:
    """Out `[nodes * rows, q_heads, dim]` and lse `[nodes * rows, q_heads]` of one part."""
    shape = case.shape
    nodes, rows = part.rows.shape
    group = shape.q_heads // shape.kv_heads
    # [nodes, rows, q_heads, dim]
    query = case.query.view(nodes, rows, *case.query.shape[1:]) if part.covers else case.query[part.rows]
    keys, values = part.keys, part.values
    if part.causal:
        query = query.transpose(1, 2)
        if keys.device.type == "cuda":
            keys, values = (
                side.repeat_interleave(group, 1) if group > 1 else side for side in (keys, values)
            )
    else:
        query = query.view(nodes, rows, shape.kv_heads, group, shape.dim).permute(0, 2, 1, 3, 4).flatten(2, 3)
    if keys.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            query.contiguous(), keys, values, 0.0, part.causal, scale=case.scale
        )
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.contiguous(), keys, values, 0.0, part.causal, scale=case.scale
        )
    lse = lse[..., : query.shape[2]]
    if part.causal:
        return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
    out = out.view(nodes, shape.kv_heads, rows, group, shape.dim).permute(0, 2, 1, 3, 4)
    lse = lse.reshape(nodes, shape.kv_heads, rows, group).permute(0, 2, 1, 3)
    return out.reshape(-1, shape.q_heads, shape.dim), lse.reshape(-1, shape.q_heads)
