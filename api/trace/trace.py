"""A whole trace in columns, which is replayed many times at little cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvtrie.api.trace.request import TraceRequest
from kvtrie.prefix_tree.errors import InputError

Ints = npt.NDArray[np.int64]
Blocks = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """`requests` requests, in order of arrival."""

    name: str
    block_tokens: int
    times: npt.NDArray[np.float64]
    """Seconds, `[requests]`, never decreasing."""
    tenants: tuple[str, ...]
    tenant_of: Ints
    """Index into `tenants`, `[requests]`."""
    starts: Ints
    """`[requests + 1]`: request i has `blocks[starts[i] : starts[i + 1]]`."""
    blocks: Blocks
    """Every request's blocks in path order, renumbered 0..unique-1, `[block uses]`."""
    unique_blocks: int
    asked_from: Ints
    """`[requests]`: see `TraceRequest`."""
    asked_to: Ints
    prompt_tokens: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.times)

    @property
    def asked_blocks(self) -> Ints:
        """Blocks each request asked the cache for, `[requests]`."""
        return self.asked_to - self.asked_from

    def served_blocks(self, matched: Ints) -> Ints:
        """Blocks that each request asked for and that are among its first `matched` blocks, `[requests]`."""
        return np.asarray(np.clip(matched, self.asked_from, self.asked_to) - self.asked_from)

    def asked_tokens(self) -> Ints:
        """Prompt tokens each request asked for, `[requests]`."""
        return np.asarray(np.maximum(self.prompt_tokens - self.asked_from * self.block_tokens, 0))

    def served_tokens(self, matched: Ints) -> Ints:
        """Prompt tokens not computed where the first `matched` blocks are cached, `[requests]`.

        A last block may be half full, and one token is always left to compute.
        """
        tokens = self.served_blocks(matched) * self.block_tokens
        return np.asarray(np.minimum(tokens, np.maximum(self.asked_tokens() - 1, 0)))


def gather(name: str, block_tokens: int, requests: Iterable[TraceRequest]) -> Trace:
    """`requests` as columns; those that are out of order are put in order of time.

    Raises:
        InputError: there are no requests, or none of them has a block.
    """
    # 1. Requests in order of time.
    found = list(requests)
    times = np.array([request.time_seconds for request in found], np.float64)
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        found, times = [found[i] for i in order], times[order]
    # 2. Blocks numbered from 0, each number always after the same one.
    lengths = np.array([len(request.blocks) for request in found], np.int64)
    if not lengths.sum():
        raise InputError(f"trace {name} holds no whole block of {block_tokens} tokens: nothing to replay")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    ids, blocks = np.unique(np.concatenate([request.blocks for request in found]), return_inverse=True)
    if not _are_paths(blocks, starts, len(ids)):
        blocks = _numbered_by_path(blocks, starts)
    # 3. Tenants numbered, and the columns.
    tenants = tuple(dict.fromkeys(request.tenant for request in found))
    place = {tenant: index for index, tenant in enumerate(tenants)}
    asked_to = [len(r.blocks) if r.asked_to is None else min(r.asked_to, len(r.blocks)) for r in found]
    return Trace(
        name=name,
        block_tokens=block_tokens,
        times=times,
        tenants=tenants,
        tenant_of=np.array([place[request.tenant] for request in found], np.int64),
        starts=starts,
        blocks=blocks.astype(np.int32),
        unique_blocks=int(blocks.max()) + 1,
        asked_from=np.array([min(r.asked_from, end) for r, end in zip(found, asked_to)], np.int64),
        asked_to=np.array(asked_to, np.int64),
        prompt_tokens=np.array([request.prompt_tokens for request in found], np.int64),
        output_tokens=np.array([request.output_tokens for request in found], np.int64),
    )


def _are_paths(blocks: Ints, starts: Ints, unique: int) -> bool:
    """Whether every block follows one and the same block in all paths."""
    before = np.empty_like(blocks)
    before[1:] = blocks[:-1]
    before[starts[:-1][starts[:-1] < len(blocks)]] = -1
    parent = np.empty(unique, np.int64)
    parent[blocks] = before
    return bool((parent[blocks] == before).all())


def _numbered_by_path(blocks: Ints, starts: Ints) -> Ints:
    """Blocks renumbered by their id and all ids before them, for traces whose ids name contents only."""
    numbers: dict[tuple[int, int], int] = {}
    renumbered = []
    flat = blocks.tolist()
    for start, end in zip(starts.tolist(), starts[1:].tolist()):
        number = -1
        for block in flat[start:end]:
            number = numbers.setdefault((number, block), len(numbers))
            renumbered.append(number)
    return np.array(renumbered, np.int64)
