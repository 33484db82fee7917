"""What the tree itself costs: match, insert, lease, evict, memory, and how that grows. No model, no torch.

`python -m bench.tree` runs this part alone, in an environment that may have peers and need not have torch.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterable
from statistics import median

import numpy as np

from bench.measure import median_seconds
from bench.peers import sglang_radix, vllm_blocks
from kvtrie.prefix_tree import Match, Namespace, PrefixTree, Root, Tier, check
from kvtrie.prefix_tree.keys import TOKEN_BYTES, TokenArray

PROMPT_TOKENS = 2304
PROMPTS = 400
LEAVES = 50_000
CHILDREN = 100_000
PATH_CHUNKS = 100_000

TARGETS = {
    "match_2304_tokens_us": 40,
    "match_2304_tokens_chunk16_us": 100,
    "insert_2304_tokens_us": 120,
    "lease_release_us": 3,
    "evict_one_of_50000_leaves_us": 6,
    "evict_million_over_thousand_leaves": 3,
    "partial_match_100000_children_us": 50,
    "node_bytes_leaf": 600,
    "node_bytes_chain": 600,
}
"""Most that a figure should be."""


class Grown:
    """A tree of one tier that stores and takes out what it is told to."""

    def __init__(self, chunk_tokens: int) -> None:
        self.chunk_tokens = chunk_tokens
        self.tree = PrefixTree(chunk_tokens, [Tier("device", 1 << 60)])
        self.root: Root = self.tree.root(Namespace("tenant:bench", chunk_tokens=chunk_tokens))

    def match(self, prompt: TokenArray) -> Match:
        """From the buffer of tokens: hashing and comparison are part of it."""
        return self.tree.match(self.root, prompt.tobytes())

    def store(self, prompt: TokenArray) -> None:
        """Match, and store what is missing."""
        tokens = prompt.tobytes()
        match = self.tree.match(self.root, tokens)
        chunks = len(prompt) // self.chunk_tokens
        self.tree.insert_path(match, tokens, 0, range(chunks - len(match.path)), 1)

    def evict_seconds(self, times: int) -> list[float]:
        """One leaf at a time."""
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            gone = self.tree.evict(0, 1)
            taken.append(time.perf_counter() - start)
            assert len(gone) == 1, "gate: one leaf went"
        return taken


def run() -> dict[str, float]:
    """Medians, each over hundreds of calls; peers beside, where they are installed."""
    random = np.random.default_rng(0)
    prompts = [_tokens(random, PROMPT_TOKENS) for _ in range(PROMPTS)]
    leaves = list(random.integers(0, 32000, (LEAVES, 64), dtype=np.int32))
    return {
        **_requests(prompts, leaves),
        **_finer_chunks(prompts, leaves),
        **_one_long_path(random),
        **_many_children(random),
        **_memory(random),
        **_growth(random),
        **sglang_radix.run(prompts, leaves),
        **vllm_blocks.run(prompts),
    }


def _requests(prompts: list[TokenArray], leaves: list[TokenArray]) -> dict[str, float]:
    grown = _grown(64, leaves)
    tree = grown.tree
    insert_seconds = median_seconds(grown.store, prompts)
    for prompt in prompts[::20]:
        assert grown.match(prompt).tokens == PROMPT_TOKENS, "gate: what was stored is matched"
    match_seconds = median_seconds(grown.match, prompts * 3)
    matches = [grown.match(prompt) for prompt in prompts]
    lease_seconds = median_seconds(lambda match: tree.release(tree.lease(match)), matches * 5)
    evict_seconds = []
    for number in range(2000):
        # Leaves that were used since they were queued are in the way: lazy re-sorting is part of the price.
        tree.release(tree.lease(matches[number % len(matches)]))
        evict_seconds += grown.evict_seconds(1)
    check(tree)
    return {
        "match_2304_tokens_us": match_seconds * 1e6,
        "insert_2304_tokens_us": insert_seconds * 1e6,
        "lease_release_us": lease_seconds * 1e6,
        "evict_one_of_50000_leaves_us": median(evict_seconds) * 1e6,
    }


def _finer_chunks(prompts: list[TokenArray], leaves: list[TokenArray]) -> dict[str, float]:
    grown = _grown(16, [leaf[:16] for leaf in leaves])
    insert_seconds = median_seconds(grown.store, prompts)
    match_seconds = median_seconds(grown.match, prompts * 3)
    return {
        "match_2304_tokens_chunk16_us": match_seconds * 1e6,
        "insert_2304_tokens_chunk16_us": insert_seconds * 1e6,
    }


def _one_long_path(random: np.random.Generator) -> dict[str, float]:
    """Everything is linear in the path, and nothing recurses."""
    grown, prompt = Grown(1), _tokens(random, PATH_CHUNKS)
    start = time.perf_counter()
    grown.store(prompt)
    stored = time.perf_counter()
    assert grown.match(prompt).tokens == PATH_CHUNKS, "gate: what was stored is matched"
    matched = time.perf_counter()
    assert len(grown.tree.evict(0, PATH_CHUNKS)) == PATH_CHUNKS, "gate: all of it can go"
    evicted = time.perf_counter()
    return {
        "long_path_insert_us_per_chunk": (stored - start) / PATH_CHUNKS * 1e6,
        "long_path_match_us_per_chunk": (matched - stored) / PATH_CHUNKS * 1e6,
        "long_path_evict_us_per_chunk": (evicted - matched) / PATH_CHUNKS * 1e6,
    }


def _many_children(random: np.random.Generator) -> dict[str, float]:
    """The best partial match: all but the last token of some child."""
    stored = random.integers(0, 1 << 16, (CHILDREN, 4), dtype=np.int32)
    grown = _grown(4, stored)
    asked = [row.copy() for row in stored[random.integers(0, CHILDREN, 500)]]
    for row in asked:
        row[3] ^= 1 << 20
        assert grown.match(row).partial_tokens == 3, "gate: the nearest child was found"
    seconds = median_seconds(grown.match, asked)
    return {"partial_match_100000_children_us": seconds * 1e6}


def _memory(random: np.random.Generator) -> dict[str, float]:
    """Bytes per node besides its tokens, index, queue and children's order included."""
    figures = {}
    for name, chunks in (("leaf", 1), ("chain", 100)):
        prompts = random.integers(0, 32000, (CHILDREN // chunks, 4 * chunks), dtype=np.int32)
        grown = Grown(4)
        gc.collect()
        tracemalloc.start()
        for prompt in prompts:
            grown.store(prompt)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown.tree.tiers[0].chunks == CHILDREN
        figures[f"node_bytes_{name}"] = held / CHILDREN - 4 * TOKEN_BYTES
    return figures


def _growth(random: np.random.Generator) -> dict[str, float]:
    """Eviction of one leaf among more and more."""
    figures = {}
    for leaves in (1_000, 1_000_000):
        grown = _grown(2, random.integers(0, 1 << 31, (leaves, 2), dtype=np.int32))
        figures[leaves] = median(grown.evict_seconds(500)) * 1e6
    return {
        "evict_one_of_1000_leaves_us": figures[1_000],
        "evict_one_of_1000000_leaves_us": figures[1_000_000],
        "evict_million_over_thousand_leaves": figures[1_000_000] / figures[1_000],
    }


def _grown(chunk_tokens: int, prompts: Iterable[TokenArray]) -> Grown:
    grown = Grown(chunk_tokens)
    for prompt in prompts:
        grown.store(prompt)
    return grown


def _tokens(random: np.random.Generator, count: int) -> TokenArray:
    return random.integers(0, 32000, count, dtype=np.int32)


if __name__ == "__main__":
    for figure, value in run().items():
        print(f"{figure:40} {value:12.3f}", f"  (<= {TARGETS[figure]})" if figure in TARGETS else "")
