"""The figures of a run. docs/load.md says what each one means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtrie.api.load.outcome import LoadRun, Outcome
from kvtrie.api.load.plan import LoadPlan
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count for goodput."""

    ttft_seconds: float = 2.0
    tpot_seconds: float = 0.1

    def __post_init__(self) -> None:
        if not (self.ttft_seconds > 0 and self.tpot_seconds > 0):
            raise InputError("the limits of --slo-ttft-ms and --slo-tpot-ms must be above 0")

    def holds(self, outcome: Outcome) -> bool:
        """Whether a request has a whole answer within both limits. Without a second token TPOT is kept."""
        if outcome.failure is not None or outcome.ttft is None or outcome.ttft > self.ttft_seconds:
            return False
        return outcome.tpot is None or outcome.tpot <= self.tpot_seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over requests, in seconds. Percentiles interpolate linearly between the two nearest values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class TenantMeasures:
    """One tenant's part."""

    tenant: int
    requests: int
    failed: int
    ttft: Spread | None
    cached_share: float | None


@dataclass(frozen=True, slots=True)
class Measures:
    """A run in figures. Warm-up requests are in none of them."""

    requests: int
    """Measured requests, failed ones included."""
    failed: int
    failures: dict[str, int]
    """Failed requests by kind: `HTTP 429`, `cut`, `timed out`, ..."""
    failure_messages: dict[str, str]
    """What the first failure of each kind said."""
    without_text: int
    """Whole answers without any text."""
    seconds: float
    """From when the first measured request was due to the last end."""
    ttft: Spread | None
    """Time to first token. None where no request has one; likewise below."""
    tpot: Spread | None
    """Time per output token after the first, one value a request."""
    itl: Spread | None
    """Inter-token latency: time between two pieces of text, all requests together."""
    end_to_end: Spread | None
    lag: Spread | None
    """How much later than due this client sent; None for a closed loop, where nothing is due."""
    offered_rate: float | None
    """Requests per second that were due; None for a closed loop."""
    sent_rate: float | None
    """Requests per second that were sent."""
    completed_rate: float
    """Whole answers per second."""
    goodput: float
    """Requests per second that kept the SLO."""
    within_slo: float
    """Share of the measured requests that kept the SLO."""
    prompt_tokens: int | None
    """Sum over whole answers; None where the server reports no usage. Likewise the next three."""
    cached_tokens: int | None
    cached_share: float | None
    completion_tokens: int | None
    output_tokens_per_second: float
    """Counted as pieces of text where the server reports no usage."""
    tenants: tuple[TenantMeasures, ...]


def measure(plan: LoadPlan, run: LoadRun, slo: Slo, warm_up: int = 0) -> Measures:
    """Figures of a run, without its first `warm_up` requests.

    Raises:
        InputError: no request is left to measure.
    """
    measured = [one for one in run.outcomes if one.index >= warm_up]
    if not measured:
        raise InputError(
            f"no request is left to measure: {len(run.outcomes)} were sent, {warm_up} of them to warm up"
        )
    whole = [one for one in measured if one.failure is None]
    failures = Counter(one.failure for one in measured if one.failure is not None)
    seconds = max(one.ended for one in measured) - min(one.due for one in measured)
    good = sum(slo.holds(one) for one in measured)
    messages: dict[str, str] = {}
    for one in measured:
        if one.failure is not None:
            messages.setdefault(one.failure, one.message)
    return Measures(
        requests=len(measured),
        failed=sum(failures.values()),
        failures=dict(sorted(failures.items())),
        failure_messages=messages,
        without_text=sum(not one.text_times for one in whole),
        seconds=seconds,
        ttft=spread(one.ttft for one in whole),
        tpot=spread(one.tpot for one in whole),
        itl=spread(_gaps(whole)),
        end_to_end=spread(one.ended - one.due for one in whole),
        lag=None if plan.offsets is None else spread(one.sent - one.due for one in measured),
        offered_rate=None if plan.offsets is None else rate([one.due for one in measured]),
        sent_rate=rate([one.sent for one in measured]),
        completed_rate=_per_second(len(whole), seconds),
        goodput=_per_second(good, seconds),
        within_slo=good / len(measured),
        prompt_tokens=_total(one.prompt_tokens for one in whole),
        cached_tokens=_total(one.cached_tokens for one in whole),
        cached_share=_cached_share(whole),
        completion_tokens=_total(one.completion_tokens for one in whole),
        output_tokens_per_second=_per_second(sum(one.tokens for one in whole), seconds),
        tenants=tuple(_tenant(tenant, measured) for tenant in sorted({one.tenant for one in measured})),
    )


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are there; None where none is."""
    found = np.array([value for value in values if value is not None], np.float64)
    if not len(found):
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(found, [50, 90, 95, 99]))
    return Spread(len(found), float(found.mean()), p50, p90, p95, p99, float(found.max()))


def rate(times: Sequence[float]) -> float | None:
    """Events per second between the first and the last one; None for less than two, or all at one time."""
    if len(times) < 2:
        return None
    length = max(times) - min(times)
    return (len(times) - 1) / length if length > 0 else None


def _gaps(whole: Sequence[Outcome]) -> Iterable[float]:
    for one in whole:
        yield from (after - before for before, after in zip(one.text_times, one.text_times[1:]))


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _total(counts: Iterable[int | None]) -> int | None:
    found = [count for count in counts if count is not None]
    return sum(found) if found else None


def _cached_share(whole: Sequence[Outcome]) -> float | None:
    """Cached prompt tokens over prompt tokens.

    Some servers leave the details out where nothing was cached: that is 0, unless no answer has any.
    """
    cached = _total(one.cached_tokens for one in whole)
    prompt = _total(one.prompt_tokens for one in whole)
    return cached / prompt if cached is not None and prompt else None


def _tenant(tenant: int, measured: Sequence[Outcome]) -> TenantMeasures:
    mine = [one for one in measured if one.tenant == tenant]
    whole = [one for one in mine if one.failure is None]
    return TenantMeasures(
        tenant, len(mine), len(mine) - len(whole), spread(one.ttft for one in whole), _cached_share(whole)
    )
