"""A step as the arrays that the Triton kernel reads, in one upload: everything is int32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvtrie.chunk_kernels.launch_items import ITEM_FIELDS, MERGE_FIELDS, Sizes, plan_work
from kvtrie.chunk_kernels.step import Step, caller_order
from kvtrie.chunk_kernels.tilings import Tilings
from kvtrie.chunk_kernels.work_split import CostModel
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.plan import PlanSequence
from kvtrie.prefix_tree.plan_check import check_plan
from kvtrie.prefix_tree.planner import make_plan


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One step, ready to launch; tensors on the pool's device, int32 if not stated otherwise."""

    tilings: Tilings
    sizes: Sizes
    """Sizes of grids and buffers; the kernel reads the number of items from `counts`."""
    counts: Tensor
    """`[COUNTS]`: items that store partials, items that finish rows, and two unused ones."""
    items_partial: Tensor
    """`[partial_items, ITEM_FIELDS]`"""
    items_finish: Tensor
    """`[finish_items, ITEM_FIELDS]`"""
    order: Tensor
    """`[rows]`: the caller's row of each plan row."""
    merge_index: Tensor
    """`[sequences, 2]`: first merge and number of merges of each sequence, and of each idle row."""
    merges: Tensor
    """`[merges, MERGE_FIELDS]`"""
    slots: Tensor
    """`[table]`: slots of every run, one after the other."""
    positions: Tensor
    """int64 `[rows]`: absolute position of each row, in the caller's order."""


def launch_plan(step: Step, group: int, tilings: Tilings, cost: CostModel) -> LaunchPlan:
    """The step's arrays for the kernel; made once per step, for all layers.

    Args:
        step: from `prepare_step`.
        group: query heads per KV head.
        tilings: how tiles are computed.
        cost: of the device.
    """
    return step.derived((LaunchPlan, group, tilings, cost), lambda step: _make(step, group, tilings, cost))


def _make(step: Step, group: int, tilings: Tilings, cost: CostModel) -> LaunchPlan:
    sequences, shape = step.sequences, step.pool.shape
    readers = [PlanSequence(s.slots, s.context_tokens + s.rows, s.rows) for s in sequences]
    plan = make_plan(readers, shape.chunk_tokens)
    if checks_wanted():
        check_plan(plan, readers, shape.chunk_tokens)
    work = plan_work(plan, caller_order(plan, sequences), shape, group, tilings, cost)
    packed = np.zeros(work.sizes.packed, np.int32)
    work.pack(packed, work.sizes)
    buffer = torch.from_numpy(packed).to(step.pool.device)
    return launch_over(buffer, work.sizes, step.positions, tilings)


def launch_over(buffer: Tensor, sizes: Sizes, positions: Tensor, tilings: Tilings) -> LaunchPlan:
    """The views of a packed buffer (int32, `sizes.packed` long) that the kernel takes."""
    counts, partial, finish, order, index, merges, slots = (
        buffer[at : at + length] for at, length in sizes.extents()
    )
    return LaunchPlan(
        tilings,
        sizes,
        counts,
        partial.view(-1, ITEM_FIELDS),
        finish.view(-1, ITEM_FIELDS),
        order,
        index.view(-1, 2),
        merges.view(-1, MERGE_FIELDS),
        slots,
        positions,
    )
