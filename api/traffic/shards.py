"""LRU's miss-ratio curve while serving, from a sample of fixed size.

Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC Construction with SHARDS" (FAST 2015): a block is sampled
where its hash is below a threshold, always or never; reuse distances among the sample, divided by the sampling
rate, are those of the whole. When the sample outgrows its budget the threshold falls and the blocks above it are
forgotten (§3.3); what sampling drew too much or too little is put right at distance zero (SHARDS-adj).

Distances are those of `reuse.py`: against what was there when the request arrived, its path used tail to head.
They are counted for many requests at once, because Python is slow at one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

BUDGET = 8192
"""Most blocks in the sample."""
KEPT = 0.75
"""Part of the budget that is kept when it is exceeded."""
DRAWN_AT_ONE_RATE = 2048
DRAWN_SHARE = 1 / 512
"""Besides the budget: uses drawn at one rate may be this many, or this share of those seen at it. Then the rate
is halved. It bounds the time that a small working set takes, whose blocks all fit the budget."""
FEWEST = 512
"""Blocks that stay in the sample, whatever they cost."""
BINS_PER_OCTAVE = 16
_BINS = 40 * BINS_PER_OCTAVE
_BATCH = 384
_ALL = 1 << 64


class Shards:
    """One stream of requests, and its curve. Not thread-safe."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._threshold = _ALL
        self._last: dict[int, int] = {}
        """The tick at which a sampled block was last used."""
        self._ticks = np.empty(0, np.int64)
        """All of these, ascending: the LRU stack of the sample."""
        self._tick = 0
        self._seen = 0
        self._drawn = 0
        self._seen_at_rate = 0
        self._expected = 0.0
        """Uses that should have been sampled. This and the histogram are in units of the present rate."""
        self._reuses = np.zeros(_BINS)
        """Sampled reuses by distance in blocks, over powers of 2^(1/BINS_PER_OCTAVE)."""
        self._first_uses = 0.0

    @property
    def rate(self) -> float:
        """Part of all blocks that is sampled."""
        return self._threshold / _ALL

    @property
    def seen(self) -> int:
        """Block uses observed so far."""
        return self._seen

    @property
    def threshold(self) -> int:
        """A block is sampled while its hash is below this; it only ever falls."""
        return self._threshold

    def observe(self, drawn: Iterable[Sequence[int]], lengths: Iterable[int]) -> None:
        """Takes in requests.

        Args:
            drawn: of each request, its blocks' hashes in path order; those not below `threshold` may be left out.
                Hashes must be uniform over uint64, and the same for the same block.
            lengths: how many blocks each request has.
        """
        sample: list[int] = []
        first_of_request: list[int] = []
        threshold, rate = self._threshold, self.rate
        for hashes, length in zip(drawn, lengths):
            if hashes:
                mine = [block for block in reversed(hashes) if block < threshold]
                if sample and len(sample) + len(mine) > _BATCH:
                    self._use(sample, first_of_request)
                    sample, first_of_request = [], []
                    if self._threshold < threshold:
                        threshold, rate = self._threshold, self.rate
                        mine = [block for block in mine if block < threshold]
                first_of_request += [len(sample)] * len(mine)
                sample += mine
            self._seen += length
            self._seen_at_rate += length
            self._expected += length * rate
        if sample:
            self._use(sample, first_of_request)

    def hit_ratio(self, capacity_blocks: float) -> float:
        """LRU's fraction of blocks served with room for `capacity_blocks`; 0 before anything was seen."""
        if self._expected <= 0:
            return 0.0
        reuses = self._reuses.copy()
        reuses[0] += self._expected - reuses.sum() - self._first_uses
        place = float(_place(np.array([max(0.0, capacity_blocks)]))[0])
        whole = min(int(place), _BINS - 1)
        # Small distances have a bin each, which is served or not; further on a bin is many distances.
        part = place - whole if capacity_blocks > BINS_PER_OCTAVE else 0.0
        served = reuses[:whole].sum() + part * reuses[whole]
        return float(min(1.0, max(0.0, served / self._expected)))

    def _use(self, sample: list[int], firsts: Sequence[int]) -> None:
        """Counts the distances of a few whole requests, and moves their blocks to the top of the stack."""
        base, last = self._tick, self._last
        first_of_request = np.array(firsts)
        previous_uses = []
        for tick, block in enumerate(sample, base):
            previous_uses.append(last.get(block, -1))
            last[block] = tick
        self._tick += len(sample)
        self._drawn += len(sample)
        previous = np.array(previous_uses, np.int64)
        old = np.searchsorted(self._ticks, previous, side="right")
        above = np.where(previous < base, len(self._ticks) - old, base - previous - 1)
        # Of the uses before this request, those of blocks that had not been used since: they went above.
        # For a block used in this batch that counts all up to its use, which `above` takes off again.
        reused = np.flatnonzero(previous >= 0)
        if first_of_request[-1] and len(reused):
            earlier = np.arange(len(sample)) < first_of_request[reused, None]
            passed = np.count_nonzero(np.logical_and(earlier, previous < previous[reused, None]), axis=1)
        else:
            passed = np.zeros(len(reused), np.int64)
        distances = (above[reused] + passed) / self.rate
        places = np.minimum(_place(distances).astype(np.int64), _BINS - 1)
        self._reuses += np.bincount(places, minlength=_BINS)
        self._first_uses += len(sample) - len(reused)
        stays = np.ones(len(self._ticks), bool)
        in_stack = np.logical_and(previous >= 0, previous < base)
        stays[old[in_stack] - 1] = False
        is_last = np.ones(len(sample), bool)
        is_last[previous[previous >= base] - base] = False
        self._ticks = np.concatenate([self._ticks[stays], base + np.flatnonzero(is_last)])
        while self._is_over():
            self._lower()

    def _is_over(self) -> bool:
        if len(self._last) > self._budget:
            return True
        allowed = max(DRAWN_AT_ONE_RATE, self._seen_at_rate * DRAWN_SHARE)
        return self._drawn > allowed and len(self._last) > FEWEST

    def _lower(self) -> None:
        """Lowers the threshold until some blocks leave the sample, and converts all counts to the new rate."""
        hashes = np.fromiter(self._last, np.uint64, len(self._last))
        kept = int(KEPT * self._budget) if len(hashes) > self._budget else len(hashes) // 2
        threshold = max(1, int(np.partition(hashes, kept)[kept]))
        ratio = threshold / self._threshold
        self._threshold = threshold
        self._reuses *= ratio
        self._first_uses *= ratio
        self._expected *= ratio
        self._drawn = self._seen_at_rate = 0
        self._last = {block: tick for block, tick in self._last.items() if block < threshold}
        self._ticks = np.sort(np.fromiter(self._last.values(), np.int64, len(self._last)))


def _place(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bins of distances in the histogram."""
    return np.asarray(np.log2(distances + 1.0) * BINS_PER_OCTAVE)
