"""FlashInfer's `MultiLevelCascadeAttentionWrapper`: one call per level of the forest, merged pairwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers import flashinfer_pages as pages


@dataclass(frozen=True, slots=True)
class Level:
    """One level's groups of adjacent requests, each over one node, or over nothing where a path is shorter."""

    row_starts: list[int]
    page_starts: list[int]
    page_indices: list[int]
    last_page_tokens: list[int]


def cascade_levels(case: Case) -> list[Level]:
    """Shared nodes from the root on; every request's own node on the last level, where the causal mask is."""
    shape = case.shape
    paths = shape.paths
    depth = max(map(len, paths))
    padded = [[*path[:-1], *([None] * (depth - len(path))), path[-1]] for path in paths]
    found = []
    for level in range(depth):
        rows, starts, indices, last = [0], [0], [], []
        for request, path in enumerate(padded):
            node = path[level]
            if request and node == padded[request - 1][level]:
                rows[-1] += shape.rows
                continue
            rows.append(rows[-1] + shape.rows)
            slots = case.node_slots[node] if node is not None else range(0)
            indices += slots
            starts.append(len(indices))
            full = (len(slots) - 1) * shape.chunk_tokens
            last.append(shape.tokens[node] - full if node is not None else 0)
        found.append(Level(rows, starts, indices, last))
    return found


class FlashInferCascade:
    """The peer to beat where a prefix is shared."""

    name = "FlashInfer cascade"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        return pages.absent(device)

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        import flashinfer

        shape, device = case.shape, case.pool.device
        levels = cascade_levels(case)
        wrapper: Any = flashinfer.MultiLevelCascadeAttentionWrapper(
            len(levels), pages.workspace(device), "NHD"
        )

        def plan() -> None:
            wrapper.plan(
                [pages.int32(level.row_starts, device) for level in levels],
                [pages.int32(level.page_starts, device) for level in levels],
                [pages.int32(level.page_indices, device) for level in levels],
                [pages.int32(level.last_page_tokens, device) for level in levels],
                shape.q_heads,
                shape.kv_heads,
                shape.dim,
                shape.chunk_tokens,
                causal=shape.rows > 1,
                sm_scale=case.scale,
                q_data_type=case.pool.dtype,
                kv_data_type=case.pool.dtype,
            )

        stored = pages.pages_of(case)

        def call() -> Tensor:
            found: Tensor = wrapper.run(case.query, stored)
            return found

        return pages.planned(plan, call, device)
