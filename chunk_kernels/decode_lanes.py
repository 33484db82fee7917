"""Decoding sequences in fixed lanes: the device state that a captured graph reads, step after step.

Each lane holds one sequence's next token, its position and the slots it writes to next. A step that only appends
changes nothing on the host: the device advances its own lanes, and causality cuts each run at the row's position,
so that a plan made for whole slots stays right while they fill. When a sequence joins, leaves or takes new slots,
the planner is patched and the plan is sent again, in one transfer from pinned memory:

    int64  ids | positions | first chunk of the tail        [lanes] each
    int32  tails [lanes, TAIL_CHUNKS] | packed plan (launch_items.Sizes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kvtrie.chunk_kernels.launch_items import Sizes, plan_work
from kvtrie.chunk_kernels.launch_plan import launch_over
from kvtrie.chunk_kernels.pool import ChunkPool
from kvtrie.chunk_kernels.tilings import Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.plan import PlanSequence
from kvtrie.prefix_tree.plan_check import check_plan
from kvtrie.prefix_tree.planner import Planner

TAIL_CHUNKS = 4
"""Slots that a lane may write to before the host must plan again: its next token's, and those reserved ahead."""

IDLE = -1
"""Slot of a lane without a sequence: nothing is written."""

MERGES_PER_LANE = 32
PARTIALS_PER_PAIR = 32


@dataclass(frozen=True, slots=True)
class LaneSequence:
    """A decoding sequence, as its lane needs it."""

    layout: int
    """Changes whenever its slots do, and is never another sequence's."""
    slots: Sequence[int]
    """All its slots, those reserved for the next tokens included."""
    context_tokens: int
    """Tokens whose KV is in the pool: the position of its next token."""
    token: int
    """The token to compute."""


class DecodeLanes:
    """State of up to `lanes` sequences, one new token each per step.

    Args:
        pool: where their KV is.
        lanes: most sequences.
        group: query heads per KV head.
        tilings: of the launches.
        cost: of the device.
    """

    def __init__(self, pool: ChunkPool, lanes: int, group: int, tilings: Tilings, cost: CostModel) -> None:
        self.pool = pool
        self.lanes = lanes
        self._group = group
        self._tilings = tilings
        self._cost = cost
        self._capacity = _capacity(pool, lanes, group, tilings, cost)
        is_cuda = pool.device.type == "cuda"
        words = 2 * 3 * lanes + lanes * TAIL_CHUNKS
        self._plan_at = -(-words // 4) * 4
        size = self._plan_at + self._capacity.packed
        # The device is named, because the caller may have set another default.
        self._staged = torch.zeros(size, dtype=torch.int32, device="cpu", pin_memory=is_cuda)
        self._words = self._staged.numpy()
        device = torch.zeros(size, dtype=torch.int32, device=pool.device)
        self._device = device
        wide = device[: 2 * 3 * lanes].view(torch.int64)
        self.ids, self.positions, self._tail_from = wide.view(3, lanes).unbind()
        """int64 `[lanes]` each: the tokens to compute, and their positions."""
        self._tails = device[2 * 3 * lanes : words].view(lanes, TAIL_CHUNKS)
        self.write_at = torch.full((lanes,), IDLE, dtype=torch.int64, device=pool.device)
        """int64 `[lanes]`: where each new token's KV is written; negative for an idle lane."""
        launch = launch_over(device[self._plan_at :], self._capacity, self.positions, tilings)
        self.launch = launch
        """Both launches, for plans with shared runs or pieces."""
        self.launch_unshared = replace(launch, sizes=launch.sizes._replace(partial_items=0))
        """The finishing launch alone, for plans without partials."""
        self.has_partials = False
        """Whether the present plan needs both launches."""
        self._planner = Planner(pool.shape.chunk_tokens)
        self._layouts: list[int] = []
        self._tokens: list[int] | None = None
        """Tokens that the device has put into its lanes itself; None when the host must send them."""
        self._steps_left = 0
        """Steps until some lane's position leaves its tail."""

    def clear(self) -> None:
        """Makes every lane idle, on the device too."""
        self.update([])

    def forget(self) -> None:
        """Notes that the device's tokens and positions are out of date: the next update sends everything."""
        self._tokens = None

    def advanced(self, tokens: list[int]) -> None:
        """Notes that the device has run a step, chosen `tokens` and advanced each position by one."""
        self._tokens = tokens
        self._steps_left -= 1

    def update(self, sequences: Sequence[LaneSequence]) -> bool:
        """Brings the lanes up to date. False (nothing sent) where the plan is beyond their capacity.

        Where nothing has changed but what the device has done itself, nothing is sent.
        """
        layouts = [sequence.layout for sequence in sequences]
        tokens = [sequence.token for sequence in sequences]
        if self._tokens is not None and layouts == self._layouts and self._steps_left > 0:
            if tokens != self._tokens:
                self._send_tokens(tokens)
            return True
        return self._replan(sequences, layouts, tokens)

    # ---- on the device; captured

    def begin(self) -> None:
        """Finds where this step's tokens go. Device work only."""
        chunk = self.pool.shape.chunk_tokens
        place = (self.positions // chunk - self._tail_from).clamp_(0, TAIL_CHUNKS - 1)
        slot = self._tails.gather(1, place[:, None])[:, 0].to(torch.int64)
        at = slot * chunk + self.positions % chunk
        self.write_at.copy_(torch.where(slot < 0, IDLE, at))

    def advance(self, tokens: Tensor) -> None:
        """Puts the tokens that were chosen (int64 `[lanes]`) into the lanes, one position on. Device work only."""
        self.ids.copy_(tokens)
        self.positions.add_((self._tails[:, 0] >= 0).to(torch.int64))

    # ---- on the host

    def _send_tokens(self, tokens: list[int]) -> None:
        count = len(tokens)
        self._words[: 2 * self.lanes].view(np.int64)[:count] = tokens
        self._device[: 2 * count].copy_(self._staged[: 2 * count], non_blocking=True)
        self._tokens = tokens

    def _replan(self, sequences: Sequence[LaneSequence], layouts: list[int], tokens: list[int]) -> bool:
        chunk, lanes, count = self.pool.shape.chunk_tokens, self.lanes, len(sequences)
        if count > lanes:
            return False
        before, now = set(self._layouts), set(layouts)
        for layout in before - now:
            self._planner.leave(layout)
        for sequence in sequences:
            if sequence.layout not in before:
                self._planner.join(sequence.layout, sequence.slots, len(sequence.slots) * chunk)
        self._layouts, self._tokens = layouts, None
        plan = self._planner.plan()
        lane_of = {layout: lane for lane, layout in enumerate(layouts)}
        order = [lane_of[name] for name in plan.order]
        if checks_wanted():
            readers = [PlanSequence(s.slots, len(s.slots) * chunk, 1) for s in sequences]
            check_plan(replace(plan, order=tuple(order)), readers, chunk)
        work = plan_work(
            plan, order, self.pool.shape, self._group, self._tilings, self._cost, idle=range(count, lanes)
        )
        if not self._capacity.hold(work.sizes):
            return False
        words = self._words
        words[: self._plan_at] = 0
        wide = words[: 2 * 3 * lanes].view(np.int64).reshape(3, lanes)
        tails = words[2 * 3 * lanes : 2 * 3 * lanes + lanes * TAIL_CHUNKS].reshape(lanes, TAIL_CHUNKS)
        tails[:] = IDLE
        self._steps_left = TAIL_CHUNKS * chunk
        for lane, sequence in enumerate(sequences):
            first = sequence.context_tokens // chunk
            tail = sequence.slots[first : first + TAIL_CHUNKS]
            wide[:, lane] = sequence.token, sequence.context_tokens, first
            tails[lane, : len(tail)] = tail
            room = (first + len(tail)) * chunk - sequence.context_tokens
            self._steps_left = min(self._steps_left, room)
        used = self._plan_at + work.pack(words[self._plan_at :], self._capacity)
        self._device[:used].copy_(self._staged[:used], non_blocking=True)
        self.has_partials = work.sizes.partial_items > 0
        self._tokens = tokens
        return True


def _capacity(pool: ChunkPool, lanes: int, group: int, tilings: Tilings, cost: CostModel) -> Sizes:
    """Sizes for any ordinary plan of so many lanes; a larger plan runs without a graph."""
    heads = pool.shape.kv_heads
    fill = cost.processors * cost.waves // heads
    tall = -(-lanes * group // tilings.partial.block_m)
    return Sizes(
        partial_items=2 * fill + 4 * lanes + 4 * tall,
        finish_items=lanes * -(-group // tilings.finish.block_m),
        partials=PARTIALS_PER_PAIR * lanes * group * heads,
        rows=lanes,
        sequences=lanes,
        merges=MERGES_PER_LANE * lanes + 2 * fill,
        slots=pool.slots + 256 * lanes,
    )
