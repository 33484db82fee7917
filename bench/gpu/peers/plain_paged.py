"""Our own kernel as plain paged decoding: the same numbers, nothing shared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu.ours import Case, attention, build_unshared
from bench.gpu.peers.peer import Unfit, check_replicated_fits


class PlainPaged:
    """What `attend_triton` does where no two requests share a slot."""

    name = "ours, unshared"

    def absent(self, device: torch.device) -> str | None:
        """See `Peer.absent`."""
        return None

    def prepare(self, case: Case) -> Callable[[], Tensor]:
        """See `Peer.prepare`."""
        if max(map(len, case.shape.readers)) == 1:
            raise Unfit("nothing is shared: this is the row itself")
        check_replicated_fits(case.shape, case.pool.device)
        call = attention(build_unshared(case.shape, case.pool.device, case.pool.shape.dtype, case))
        return lambda: call()[0]
