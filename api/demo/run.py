"""Runs the demo's requests one after the other, cached and uncached, and adds up what was saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from kvtrie.api.demo.model import DemoModel
from kvtrie.api.demo.requests import DemoRequest
from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.api.huggingface.plain_generate import plain_answer
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request, run both ways."""

    tenant: str
    prompt_tokens: int
    cached_tokens: int
    ttft_seconds: float
    """From submission to the first token, with the cache."""
    ttft_uncached_seconds: float
    """The same for the model's own `generate`."""
    identical: bool
    """Whether both produced the same tokens."""
    output_tokens: list[int]
    answer: str
    """Their text; empty where the model is a random one."""


@dataclass(frozen=True, slots=True)
class TenantResult:
    """One tenant's requests together."""

    tenant: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    first_ttft_seconds: float
    """The first request's: it finds nothing cached."""
    ttft_seconds: float
    """Median over the later ones (over all, where there is one)."""
    ttft_uncached_seconds: float
    """Median of the same requests without the cache."""
    identical: bool

    @property
    def speedup(self) -> float:
        """How many times sooner the first token comes."""
        return self.ttft_uncached_seconds / self.ttft_seconds


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The whole run."""

    model: str
    requests: list[RequestResult]
    tenants: list[TenantResult]
    kv_bytes: int
    """KV in the tree at the end."""
    unshared_kv_bytes: int
    """KV of all requests' prompts and outputs, each kept on its own."""

    @property
    def identical(self) -> bool:
        """Whether every output equals the uncached model's."""
        return all(request.identical for request in self.requests)

    def document(self) -> dict[str, Any]:
        """The run as JSON, for `--format json`."""
        return {
            **asdict(self),
            "tenants": [{**asdict(tenant), "speedup": tenant.speedup} for tenant in self.tenants],
            "identical": self.identical,
        }


def run_demo(
    demo: DemoModel,
    cached: PrefixCachedModel,
    requests: Sequence[DemoRequest],
    new_tokens: int,
    report: Callable[[str], None],
) -> DemoResult:
    """Runs `requests` in order. `report` is called after each with its tenant.

    Raises:
        InputError: a prompt the model cannot take.
        PoolExhausted: a prompt the pool cannot hold.
    """
    prompts = [demo.prompt(request) for request in requests]
    # The first call of a process pays for thread pools and the like.
    plain_answer(demo.model, prompts[0][:16], 1)
    done: list[RequestResult] = []
    kept_tokens = 0
    for request, prompt in zip(requests, prompts):
        completion = cached.submit(prompt, tenant=_tenant_name(request.tenant), max_new_tokens=new_tokens)
        cached.engine.wait([completion])
        if completion.error is not None:
            raise completion.error
        plain = plain_answer(demo.model, prompt, new_tokens)
        done.append(
            RequestResult(
                tenant=request.tenant,
                prompt_tokens=len(prompt),
                cached_tokens=completion.cached_tokens,
                ttft_seconds=completion.ttft_seconds,
                ttft_uncached_seconds=plain.ttft_seconds,
                identical=completion.tokens == plain.tokens,
                output_tokens=completion.tokens,
                answer=demo.answer(completion.tokens),
            )
        )
        kept_tokens += len(prompt) + len(completion.tokens)
        report(request.tenant)
    shape = cached.engine.memory.shape
    return DemoResult(
        model=demo.description,
        requests=done,
        tenants=[
            _tenant([r for r in done if r.tenant == name]) for name in dict.fromkeys(r.tenant for r in done)
        ],
        kv_bytes=cached.stats()["device"]["used_bytes"],
        unshared_kv_bytes=kept_tokens * shape.chunk_bytes // shape.chunk_tokens,
    )


def _tenant(results: list[RequestResult]) -> TenantResult:
    later = results[1:] or results
    return TenantResult(
        tenant=results[0].tenant,
        requests=len(results),
        prompt_tokens=sum(r.prompt_tokens for r in results),
        cached_tokens=sum(r.cached_tokens for r in results),
        first_ttft_seconds=results[0].ttft_seconds,
        ttft_seconds=median(r.ttft_seconds for r in later),
        ttft_uncached_seconds=median(r.ttft_uncached_seconds for r in later),
        identical=all(r.identical for r in results),
    )


def _tenant_name(name: str) -> str:
    if not name.isprintable():
        raise InputError(f"tenant name {name!r} is not printable")
    return name.replace(":", "_") or "default"
