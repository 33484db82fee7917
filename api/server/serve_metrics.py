"""What the server counts. Names and units are vLLM's where they mean the same, with `kvtrie_` for `vllm:`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kvtrie.api.http.metrics_page import Histogram, Page
from kvtrie.api.server.checked_request import CheckedRequest
from kvtrie.api.server.choice import Choice

_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
_TOKENS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))


class ServeMetrics:
    """Counts of requests and histograms of their times. Used on the event loop only.

    Args:
        model: the label `model_name` of everything.
    """

    def __init__(self, model: str) -> None:
        self._model = {"model_name": model}
        self.statuses: Counter[tuple[str, int]] = Counter()
        """Replies by route and status."""
        self._ttft = Histogram(_TTFT)
        self._itl = Histogram(_ITL)
        self._queue = Histogram(_REQUEST)
        self._e2e = Histogram(_REQUEST)
        self._prompt = Histogram(_TOKENS)
        self._generated = Histogram(_TOKENS)
        self._finished: Counter[str] = Counter()
        self._by_tenant: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def tokens_came(self, seconds: float, tokens: int) -> None:
        """Counts tokens of one choice that came so long after those before."""
        self._itl.observe(seconds / tokens, tokens)

    def ended(self, tenant: str, choices: Sequence[Choice], checked: CheckedRequest) -> None:
        """Counts the choices of one answer."""
        mine = self._by_tenant[tenant]
        for choice in choices:
            completion = choice.stream.completion
            prompt = len(completion.request.tokens)
            mine["prompt"] += prompt
            mine["cached"] += completion.cached_tokens
            mine["generation"] += choice.tokens
            self._prompt.observe(prompt)
            self._generated.observe(choice.tokens)
            self._finished[choice.ended_by or ("error" if completion.error else "cancelled")] += 1
            if completion.admitted_at is not None:
                self._queue.observe(completion.admitted_at - completion.submitted_at)
            if completion.first_token_at is not None:
                self._ttft.observe(completion.first_token_at - completion.submitted_at)
            if completion.finished_at is not None:
                self._e2e.observe(completion.finished_at - completion.submitted_at)

    def page(self, engine: Mapping[str, Any], running: int, waiting: int) -> str:
        """The exposition of one moment.

        Args:
            engine: `PrefixCachedModel.stats()`.
            running: requests that take part in steps.
            waiting: requests that wait to be admitted.
        """
        page, model = Page(), self._model
        # 1. Times and lengths of requests.
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "Time from submission to the first token.", self._ttft),
            ("inter_token_latency_seconds", "Time between two tokens of a request.", self._itl),
            ("request_queue_time_seconds", "Time from submission to admission.", self._queue),
            ("e2e_request_latency_seconds", "Time from submission to the end.", self._e2e),
            ("request_prompt_tokens", "Tokens of prompts.", self._prompt),
            ("request_generation_tokens", "Tokens generated for a request.", self._generated),
        ):
            page.histogram(f"kvtrie_{name}", help_text, [(model, histogram)])
        # 2. Counters.
        for name, help_text, key in (
            ("prompt_tokens_total", "Prompt tokens.", "prompt"),
            ("cached_tokens_total", "Prompt tokens that were taken from the cache.", "cached"),
            ("generation_tokens_total", "Tokens generated.", "generation"),
        ):
            samples = [
                ({**model, "tenant": tenant}, counts[key])
                for tenant, counts in sorted(self._by_tenant.items())
            ]
            page.family(f"kvtrie_{name}", "counter", help_text, samples)
        page.family(
            "kvtrie_request_success_total",
            "counter",
            "Requests that have ended, by reason.",
            [({**model, "finished_reason": reason}, n) for reason, n in sorted(self._finished.items())],
        )
        page.family(
            "kvtrie_http_responses_total",
            "counter",
            "HTTP replies by route and status.",
            [({"route": r, "status": str(s)}, n) for (r, s), n in sorted(self.statuses.items())],
        )
        page.family(
            "kvtrie_num_preemptions_total", "counter", "Preemptions.", [(model, engine["preemptions"])]
        )
        page.family("kvtrie_evictions_total", "counter", "Chunks evicted.", [(model, engine["evictions"])])
        # 3. The engine, and the pool.
        page.family(
            "kvtrie_num_requests_running", "gauge", "Requests that take part in steps.", [(model, running)]
        )
        page.family("kvtrie_num_requests_waiting", "gauge", "Requests that wait.", [(model, waiting)])
        device = engine["device"]
        capacity = device["capacity_bytes"]
        page.family(
            "kvtrie_kv_cache_usage_perc",
            "gauge",
            "Part of the pool in use by running requests and cached chunks. 1 is all of it.",
            [(model, (capacity - device["free_bytes"]) / capacity)],
        )
        for key in ("capacity", "used", "pending", "free"):
            page.family(
                f"kvtrie_pool_{key}_bytes", "gauge", f"{key.capitalize()} bytes of the pool.",
                [(model, device[f"{key}_bytes"])],
            )  # fmt: skip
        page.family(
            "kvtrie_pool_scope_used_bytes",
            "gauge",
            "Bytes of cached chunks by scope.",
            [({**model, "scope": s}, booked["used_bytes"]) for s, booked in sorted(device["scopes"].items())],
        )
        return page.text()
