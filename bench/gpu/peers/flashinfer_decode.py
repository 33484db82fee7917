"""FlashInfer's `BatchDecodeWithPagedKVCacheWrapper`: plain paged decoding, shared pages in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.gpu.ours import Case
from bench.gpu.peers import flashinfer_pages as pages
from bench.gpu.peers.peer import Unfit


class FlashInferDecode:
    """The best plain decoding: what sharing must never be slower than."""

    name = "FlashInfer decode"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        return pages.absent(device)

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        import flashinfer

        shape, device = case.shape, case.pool.device
        if shape.rows > 1:
            raise Unfit("a decode wrapper takes one row per request")
        starts, indices, last = [0], [], []
        for sequence, length in zip(case.sequences, shape.lengths):
            indices += sequence.slots
            starts.append(len(indices))
            last.append(length - (len(sequence.slots) - 1) * shape.chunk_tokens)
        wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            # Its tensor-core path packs a query group into one tile, and is the faster one from 4 heads on.
            pages.workspace(device),
            "NHD",
            use_tensor_cores=shape.q_heads // shape.kv_heads >= 4,
        )

        def plan() -> None:
            wrapper.plan(
                pages.int32(starts, device),
                pages.int32(indices, device),
                pages.int32(last, device),
                shape.q_heads,
                shape.kv_heads,
                shape.dim,
                shape.chunk_tokens,
                q_data_type=case.pool.dtype,
                kv_data_type=case.pool.dtype,
                sm_scale=case.scale,
            )

        stored = pages.pages_of(case)

        def call() -> Tensor:
            found: Tensor = wrapper.run(case.query, stored)
            return found

        return pages.planned(plan, call, device)
