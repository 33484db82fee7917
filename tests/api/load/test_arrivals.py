"""Offsets: their statistics, by the formulas of the processes, and that a seed is all they depend on."""

from __future__ import annotations

import gzip
import math
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from kvtrie.api.load.arrivals import constant, poisson, traced
from kvtrie.prefix_tree.errors import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}")


def gaps(offsets: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *offsets], offsets)]


def test_poisson_gaps_are_exponential_and_independent() -> None:
    rate, count = 4.0, 40_000
    found = gaps(poisson(rate, count, 11))
    # Five standard errors: mean 1/r with deviation 1/r, variance 1/r^2 with deviation sqrt(8)/r^2.
    error = 5 / math.sqrt(count)
    assert abs(fmean(found) * rate - 1) < error
    assert abs(pvariance(found) * rate**2 - 1) < error * math.sqrt(8)
    # Kolmogorov-Smirnov against 1 - exp(-r x); 1.95 / sqrt(n) is passed with probability 0.999.
    ordered = sorted(found)
    distance = max(
        max(
            abs(1 - math.exp(-rate * gap) - place / count),
            abs(1 - math.exp(-rate * gap) - (place + 1) / count),
        )
        for place, gap in enumerate(ordered)
    )
    assert distance < 1.95 / math.sqrt(count)
    # Correlation of neighbours is 0 with deviation 1 / sqrt(n).
    products = [(a * rate - 1) * (b * rate - 1) for a, b in pairwise(found)]
    assert abs(fmean(products)) < error


def test_poisson_counts_per_second_have_variance_equal_to_their_mean() -> None:
    rate, count = 20.0, 40_000
    offsets = poisson(rate, count, 5)
    seconds = int(offsets[-1])
    counts = [0] * seconds
    for offset in offsets:
        if offset < seconds:
            counts[int(offset)] += 1
    # The index of dispersion is 1, with deviation sqrt(2 / seconds).
    assert abs(pvariance(counts) / fmean(counts) - 1) < 5 * math.sqrt(2 / seconds)


def test_a_seed_is_all_that_poisson_depends_on() -> None:
    assert poisson(3.0, 50, 1) == poisson(3.0, 50, 1)
    assert poisson(3.0, 50, 1) != poisson(3.0, 50, 2)
    assert poisson(3.0, 50, 1)[:20] == poisson(3.0, 20, 1)
    # The first draw of seed 1 in any Python is 0.13436424411240122.
    assert poisson(2.0, 1, 1) == [pytest.approx(-math.log(1 - 0.13436424411240122) / 2)]


def test_constant_offsets() -> None:
    assert constant(4.0, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    # Offsets are not sums of gaps, whose rounding errors would add up.
    assert constant(3.0, 3_000_001)[-1] == 1e6


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_wrong_rates_are_refused(rate: float) -> None:
    for call in (lambda: poisson(rate, 3, 1), lambda: constant(rate, 3)):
        with pytest.raises(InputError, match="above 0"):
            call()


def test_times_of_a_csv_without_prompts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(
        gzip.compress(
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
            b"2023-11-16 18:15:46.6805900,374,44\n"
            b"2023-11-16 18:15:50.9951690,396,109\n"
            b"2023-11-16 18:15:50.1805900,396,109\n"
        )
    )
    assert traced(path, 3) == [0.0, pytest.approx(3.5), pytest.approx(4.314579)]
    assert traced(path, 2) == [0.0, pytest.approx(3.5)]
    # 3 requests at 0.5 per second on average: two gaps in 4 seconds, in their own proportion.
    assert traced(path, 3, 0.5) == [0.0, pytest.approx(4 * 3.5 / 4.314579), pytest.approx(4.0)]
    with pytest.raises(InputError, match=r"has 3 requests, and 4 were asked for"):
        traced(path, 4)


def test_a_trace_that_allows_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("timestamp\n5\n5\n")
    assert traced(path, 2) == [0.0, 0.0]
    with pytest.raises(InputError, match="at one time"):
        traced(path, 2, 1.0)
    path.write_text("time\n5\n")
    with pytest.raises(InputError, match="names no column 'timestamp'"):
        traced(path, 1)


@needs_data
def test_published_traces() -> None:
    azure = traced(DATA / "azure2023_conv.csv.gz", 19_366)
    # From its first line, 18:15:46.680590, to its last, 19:14:08.402527.
    assert azure[-1] == pytest.approx(58 * 60 + 21.721937, abs=1e-5)
    mooncake = traced(DATA / "mooncake_conversation_dev.jsonl.gz", 5_606)
    assert (mooncake[0], mooncake[-1]) == (0.0, 1767.0)
    assert traced(DATA / "mooncake_conversation_dev.jsonl.gz", 1000, 7.0)[-1] == pytest.approx(999 / 7)
