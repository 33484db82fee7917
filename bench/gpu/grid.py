"""The grid: every shape's floor, our time, plan time, and each peer's time, outputs compared before any timing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from bench.gpu import ceilings, ours
from bench.gpu.peers import PEERS, SLOW_PEERS, Peer, Unfit, difference
from bench.gpu.peers.peer import MOST_DIFFERENCE, Planned
from bench.gpu.shapes import DRY, FULL, Ceilings, Shape, grid
from bench.gpu.task import Context, Task

SLOW_SECONDS = 30.0
"""Budget a peer that compiles per shape must find."""


def tasks(context: Context) -> Iterator[Task]:
    """One per shape with all fast peers; then one per slow peer and shape that asks for it."""
    limits = ceilings.known(context)
    shapes = grid(DRY if context.dry else FULL)
    for shape in shapes:
        yield Task(shape.name, lambda shape=shape: _row(context, shape, limits), 5.0)
    for peer in SLOW_PEERS:
        for shape in [shape for shape in shapes if shape.slow_peers]:
            yield Task(
                f"{shape.name} / {peer.name}",
                lambda shape=shape, peer=peer: _slow(context, shape, peer),
                0.0 if context.dry else SLOW_SECONDS,
            )


def _row(context: Context, shape: Shape, limits: Ceilings) -> dict[str, Any]:
    case = ours.build(shape, context.device, context.dtype)
    call = ours.attention(case)
    out, _ = call()
    timing = context.stopwatch.measure(call)
    floor = shape.floor(limits)
    row = {
        "family": shape.family,
        "q_heads": shape.q_heads,
        "kv_heads": shape.kv_heads,
        "dim": shape.dim,
        "dtype": context.dtype,
        "chunk_tokens": shape.chunk_tokens,
        "requests": len(shape.leaves),
        "rows_per_request": shape.rows,
        "kv_bytes": shape.kv_bytes(),
        "io_bytes": shape.io_bytes(),
        "flops": shape.flops,
        "floor_seconds": floor.seconds,
        "bound": floor.bound,
        "ceilings_measured": limits.measured,
        "kernel_launched": ours.launched(case),
        **asdict(timing),
        "percent_of_floor": 100 * floor.seconds / timing.seconds,
        "plan_seconds": ours.plan_seconds(case),
        "peers": {},
    }
    for peer in PEERS:
        row["peers"][peer.name] = _compared(context, case, peer, out)
    return row


def _slow(context: Context, shape: Shape, peer: Peer) -> dict[str, Any]:
    case = ours.build(shape, context.device, context.dtype)
    out, _ = ours.attention(case)()
    return {"row": shape.name, "peer": peer.name, "outcome": _compared(context, case, peer, out)}


def _compared(context: Context, case: ours.Case, peer: Peer, out: Tensor) -> dict[str, Any]:
    """A peer's time; or why there is none."""
    if (why := peer.absent(context.device)) is not None:
        return {"skipped": why}
    try:
        call = peer.prepare(case)
        apart = difference(call(), out)
        if apart > MOST_DIFFERENCE:
            return {"error": f"its output differs from ours by {apart:.2g}; not timed", "difference": apart}
        found = {"difference": apart, **asdict(context.stopwatch.measure(call))}
        return {**found, "plan_seconds": call.plan_seconds} if isinstance(call, Planned) else found
    except Unfit as error:
        return {"skipped": str(error)}
    except Exception as error:
        # One peer's failure is that peer's entry; a dead device is noticed by the worker after the row.
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:300]}
