"""A run as a JSON document and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvtrie.api.inspection.provenance import provenance
from kvtrie.api.load.doubts import doubts
from kvtrie.api.load.measures import Measures, Slo, Spread
from kvtrie.api.load.outcome import LoadRun, Outcome
from kvtrie.api.load.plan import LoadPlan, tenant_name

FORMAT = "kvtrie-load"
VERSION = 1
_MOST_TENANTS = 16
"""Of the text; the document has all."""


def load_document(
    plan: LoadPlan, run: LoadRun, measures: Measures, slo: Slo, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A JSON document without the single requests. Times are in seconds.

    Args:
        settings: what the run was asked for, without keys.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "provenance": provenance(),
        "settings": dict(settings),
        "plan_sha256": plan.digest(),
        "slo": asdict(slo),
        "measures": asdict(measures),
        "client": {
            "cpu_seconds": run.cpu_seconds,
            "seconds": run.seconds,
            "waited_for_connection": run.waited_for_connection,
            "was_interrupted": run.was_interrupted,
        },
        "doubts": doubts(measures, run),
    }


def request_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A JSON object for each request."""
    return [
        {
            **{name: getattr(one, name) for name in Outcome.__dataclass_fields__},
            "text_times": list(one.text_times),
            "tenant": tenant_name(one.tenant),
        }
        for one in outcomes
    ]


def load_lines(measures: Measures, slo: Slo, said: Sequence[str]) -> list[str]:
    """The run as lines of text. `said` is what `doubts` returned."""
    lines = _counts(measures, slo)
    # 1. A table of latencies.
    spreads = {
        "TTFT": measures.ttft,
        "TPOT": measures.tpot,
        "ITL": measures.itl,
        "end to end": measures.end_to_end,
        "client's lag": measures.lag,
    }
    lines += ["", _row("ms", ("mean", "p50", "p90", "p95", "p99", "max"))]
    lines += [_row(name, _cells(found)) for name, found in spreads.items() if found is not None]
    # 2. A table of tenants.
    if len(measures.tenants) > 1:
        heads = ("requests", "failed", "TTFT p50", "TTFT p99", "cached")
        lines += ["", _row("tenant", heads)]
        for one in measures.tenants[:_MOST_TENANTS]:
            times = (_ms(one.ttft.p50), _ms(one.ttft.p99)) if one.ttft else ("-", "-")
            cells = (str(one.requests), str(one.failed), *times, _share(one.cached_share))
            lines.append(_row(tenant_name(one.tenant), cells))
        if len(measures.tenants) > _MOST_TENANTS:
            lines.append(f"... and {len(measures.tenants) - _MOST_TENANTS} more, which --format json has")
    # 3. Failures, and what to doubt.
    if measures.failures:
        lines += ["", "failed"]
        lines += [
            f"  {n} x {kind}: {measures.failure_messages[kind]}" for kind, n in measures.failures.items()
        ]
    if said:
        lines += ["", *(f"warning: {sentence}" for sentence in said)]
    return lines


def _counts(measures: Measures, slo: Slo) -> list[str]:
    asked = "" if measures.offered_rate is None else f" of {measures.offered_rate:.3g}/s that were due"
    sent = "-" if measures.sent_rate is None else f"{measures.sent_rate:.3g}/s"
    lines = [
        f"{measures.requests} requests in {measures.seconds:.1f} s, {measures.failed} failed; sent {sent}{asked}",
        f"completed {measures.completed_rate:.3g}/s, {measures.output_tokens_per_second:.4g} output tokens/s",
        f"goodput {measures.goodput:.3g}/s: {measures.within_slo:.1%} of requests have TTFT <= "
        f"{_ms(slo.ttft_seconds)} ms and TPOT <= {_ms(slo.tpot_seconds)} ms",
    ]
    if measures.prompt_tokens is not None:
        cached = "not reported" if measures.cached_tokens is None else f"{measures.cached_tokens:,}"
        lines.append(
            f"prompt tokens {measures.prompt_tokens:,}, cached {cached} ({_share(measures.cached_share)})"
        )
    if measures.without_text:
        lines.append(f"{measures.without_text} answers have no text")
    return lines


def _row(head: str, cells: Sequence[str]) -> str:
    return f"{head:14}" + "".join(f"{cell:>10}" for cell in cells)


def _cells(found: Spread) -> list[str]:
    return [_ms(value) for value in (found.mean, found.p50, found.p90, found.p95, found.p99, found.max)]


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
