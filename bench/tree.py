"""What the tree itself costs: match, insert, lease, evict. No model, no torch."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from bench.measure import median_seconds
from kvtrie.prefix_tree import Namespace, PrefixTree, Tier, check
from kvtrie.prefix_tree.keys import TokenArray

CHUNK_TOKENS = 64
PROMPT_TOKENS = 2304
LEAVES = 50_000


def run() -> dict[str, float]:
    """Medians in microseconds, each over hundreds of calls."""
    random = np.random.default_rng(0)
    tree = PrefixTree(CHUNK_TOKENS, [Tier("device", 1 << 40)])
    root = tree.root(Namespace("tenant:bench"))
    prompts = [_tokens(random, PROMPT_TOKENS) for _ in range(400)]

    def insert(prompt: TokenArray) -> None:
        tokens = prompt.tobytes()
        match = tree.match(root, tokens)
        tree.insert_path(match, tokens, 0, range(len(tokens) // (4 * CHUNK_TOKENS) - len(match.path)), 1)

    insert_seconds = median_seconds(insert, prompts)
    for prompt in prompts[::20]:
        assert tree.match(root, prompt.tobytes()).tokens == PROMPT_TOKENS, "gate: what was stored is matched"
    match_seconds = median_seconds(lambda prompt: tree.match(root, prompt.tobytes()), prompts * 3)
    matches = [tree.match(root, prompt.tobytes()) for prompt in prompts]
    lease_seconds = median_seconds(lambda match: tree.release(tree.lease(match)), matches * 3)
    for _ in range(LEAVES):
        insert(_tokens(random, CHUNK_TOKENS))
    evict_seconds = []
    for _ in range(2000):
        # Every other leaf evicted has been used since it was queued: lazy re-sorting is part of the price.
        tree.release(tree.lease(matches[len(evict_seconds) % len(matches)]))
        start = time.perf_counter()
        evicted = tree.evict(0, 1)
        evict_seconds.append(time.perf_counter() - start)
        assert len(evicted) == 1, "gate: one leaf went"
    check(tree)
    return {
        "match_2304_tokens_us": match_seconds * 1e6,
        "insert_2304_tokens_us": insert_seconds * 1e6,
        "lease_release_us": lease_seconds * 1e6,
        "evict_one_of_50000_leaves_us": median(evict_seconds) * 1e6,
    }


def _tokens(random: np.random.Generator, count: int) -> TokenArray:
    return random.integers(0, 32000, count, dtype=np.int32)
