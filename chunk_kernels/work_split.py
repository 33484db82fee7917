"""On a GPU: which shared runs of a plan are read once for all readers, and into how many pieces runs are split.

The CPU path (`torch_items.py`) reads every shared run once.

Reading a run once for all its readers saves memory traffic, and costs a partial per reader and piece that is
written and read again, and a launch of its own. Where it does not pay, a run is left to its branches: each
reads it before what it reads anyway ("push down"). If sharing pays nowhere, no partial is left at all,
and a step is plain paged decoding: that is what makes sharing never a regret.

Source of the trade: ChunkAttention (arXiv 2402.15220) section 3.3 stops sharing below the last shared chunk;
FastTree (MLSys 2025) merges and splits nodes by a cost model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from kvtrie.prefix_tree.plan import Plan
from kvtrie.prefix_tree.shape import ChunkShape


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs on a device, in bytes of KV that it could have read in the same time."""

    processors: int = 132
    """Programs that run at once: streaming multiprocessors, or compute units."""
    waves: int = 2
    """Programs per processor that keep it busy: pieces are no smaller than that takes."""
    launch_bytes: int = 12 << 20
    """Cost of a launch: about 4 us at 3 TB/s."""
    partial_share: float = 0.12
    """Most traffic of partials, as a share of the KV that a piece reads."""
    least_piece_tokens: int = 256
    """Shorter pieces would be mostly start-up."""


class SharedSpan(NamedTuple):
    """A stretch of chunks that one item, or a few, attend to for all of its readers."""

    first_reader: int
    """Readers are neighbours in plan order, half-open."""
    end_reader: int
    start_chunk: int
    """Chunks of its first reader's path, half-open."""
    end_chunk: int


class WorkSplit(NamedTuple):
    """Shared spans, and for each reader where its private run begins."""

    shared: list[SharedSpan]
    """Read once for all their readers, ancestors first."""
    own_from: list[int]
    """For each place in plan order, the first chunk that it reads by itself."""


def token_bytes(shape: ChunkShape) -> int:
    """Bytes of one token's key and value under one KV head, scales included."""
    return (shape.key_bytes + shape.value_bytes) // (shape.kv_heads * shape.chunk_tokens)


def pair_bytes(shape: ChunkShape) -> int:
    """Traffic of one (row, query head) pair's partial: written once and read once, in fp32."""
    return 2 * 4 * (shape.value_dim + 1)


def split_work(plan: Plan, shape: ChunkShape, group: int, cost: CostModel) -> WorkSplit:
    """Decides for each shared run whether it is read once or left to its branches.

    Args:
        plan: who reads what.
        shape: of the pool's chunks.
        group: query heads per KV head.
        cost: of the device.
    """
    chunk, kv_bytes, partial_bytes = shape.chunk_tokens, token_bytes(shape), pair_bytes(shape) * group
    own_from = [0] * len(plan.order)
    shared: list[SharedSpan] = []
    saved = 0
    for _, start_token, tokens, first, end, branches in plan.shared:
        begin, stop = own_from[first], (start_token + tokens) // chunk
        rows = plan.row_starts[end] - plan.row_starts[first]
        gain = (branches - 1) * (stop - begin) * chunk * kv_bytes - rows * partial_bytes
        if gain > 0:
            saved += gain
            shared.append(SharedSpan(first, end, begin, stop))
            own_from[first:end] = [stop] * (end - first)
    if saved * shape.kv_heads < cost.launch_bytes:
        return WorkSplit([], [0] * len(plan.order))
    return WorkSplit(shared, own_from)


def piece_tokens(
    tokens: int, pairs: int, tile_tokens: int, shape: ChunkShape, block_n: int, cost: CostModel
) -> int:
    """How many tokens each piece of a run has; all of them where it is not worth cutting.

    Args:
        tokens: of the run.
        pairs: (row, query head) pairs per KV head that read it; each piece leaves a partial for every one.
        tile_tokens: tokens times tiles of the whole step under one KV head.
        shape: of the pool's chunks.
        block_n: pieces are whole multiples of it.
        cost: of the device.
    """
    fill = tile_tokens * shape.kv_heads // (cost.processors * cost.waves)
    cheap = pairs * pair_bytes(shape) / (cost.partial_share * token_bytes(shape))
    least = max(fill, int(cheap), cost.least_piece_tokens)
    count = max(1, tokens // least)
    return max(1, -(-tokens // (count * block_n))) * block_n
