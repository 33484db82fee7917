"""GDSF and its prefix-aware form, PGDSF: size, frequency and the cost of recomputing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.node import Residence
from kvtrie.prefix_tree.policies.greedy_dual import GreedyDual


@dataclass(frozen=True, slots=True)
class RecomputeSeconds:
    """Cost of recomputing a chunk: prefill of its own tokens, and their attention to all tokens before them.

    Raises:
        InputError: `per_chunk` is not above 0, or `per_chunk_above` is negative.
    """

    per_chunk: float = 1.0
    """Seconds of prefill, whatever its depth. Only ratios matter to a policy."""
    per_chunk_above: float = 0.0
    """Seconds more for each chunk between it and the root."""

    def __post_init__(self) -> None:
        if self.per_chunk <= 0 or self.per_chunk_above < 0:
            raise InputError(f"per_chunk must be above 0 and per_chunk_above at least 0, got {self}")

    def __call__(self, residence: Residence) -> float:
        """Seconds to recompute this chunk."""
        return self.per_chunk + self.per_chunk_above * (residence.node.depth - 1)


class GreedyDualSizeFrequency(GreedyDual):
    """GDSF (Cherkasova, Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy,
    HPL-98-69R1): `inflation + uses * seconds to recompute / bytes`. With a cost that grows with depth it is the
    prefix-aware form, PGDSF (Jin et al., RAGCache, arXiv 2404.12457).

    Args:
        cost_seconds: seconds to recompute a chunk; in a lower tier, to load or recompute it.
    """

    def __init__(self, cost_seconds: Callable[[Residence], float] | None = None) -> None:
        super().__init__()
        self._cost_seconds = cost_seconds if cost_seconds is not None else RecomputeSeconds()

    def value(self, residence: Residence) -> float:
        """Seconds saved so far per byte kept."""
        return residence.uses * self._cost_seconds(residence) / residence.size_bytes
