"""Random pools and forests of sequences for attention tests."""

from __future__ import annotations

import random

import torch

from kvtrie.chunk_kernels import ChunkPool, StepSequence
from kvtrie.prefix_tree import ChunkShape

CHUNK = 16


def random_pool(
    kv_heads: int, key_dim: int, value_dim: int, dtype: str = "float32", slots: int = 96, device: str = "cpu"
) -> ChunkPool:
    """A pool of two layers filled with noise."""
    pool = ChunkPool(ChunkShape(2, kv_heads, CHUNK, key_dim, value_dim, dtype), slots, device)
    pool.k.normal_()
    pool.v.normal_()
    return pool


def poison_unused(pool: ChunkPool, sequences: list[StepSequence]) -> None:
    """Makes every token of the pool NaN that no sequence sees."""
    used = torch.zeros(pool.slots, CHUNK, dtype=torch.bool)
    for sequence in sequences:
        for at, slot in enumerate(sequence.slots):
            used[slot, : max(0, sequence.context_tokens + sequence.rows - at * CHUNK)] = True
    unused = ~used.to(pool.device)
    pool.k[:, :, unused] = float("nan")
    pool.v[:, :, unused] = float("nan")


def random_forest(
    rng: random.Random, slots: int, *, adjacent: bool, most_rows: int = 33
) -> list[StepSequence]:
    """Sequences over several roots, uneven depths, branches at every level; decode and prefill rows."""
    free = list(range(slots))
    if not adjacent:
        rng.shuffle(free)
    paths: list[list[int]] = [[]]
    for _ in range(rng.randint(1, 6)):
        paths.append([*rng.choice(paths), *(free.pop(0) for _ in range(rng.randint(1, 5)))])
    sequences: list[StepSequence] = []
    for _ in range(rng.randint(1, 9)):
        shared = rng.choice(paths)
        rows = min(most_rows, rng.choice([1, 1, 1, 2, 7, 33]))
        context = len(shared) * CHUNK + rng.randint(0, 2 * CHUNK)
        need = -(-(context + rows) // CHUNK) - len(shared)
        if need > len(free):
            break
        sequences.append(StepSequence([*shared, *(free.pop(0) for _ in range(need))], context, rows))
    return sequences
