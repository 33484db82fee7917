"""Peers and the stopwatch that need a GPU, against stand-ins that take the same arguments and compute in torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bench.gpu import gate, ours, stopwatch
from bench.gpu.peers import difference
from bench.gpu.peers.flashinfer_cascade import FlashInferCascade
from bench.gpu.peers.flashinfer_decode import FlashInferDecode
from bench.gpu.peers.varlen import Varlen
from bench.gpu.shapes import DRY, Shape, forest, levels

CPU = torch.device("cpu")
DECODE = [
    levels("tree", "", (1, 128, 256), (256, 1024, 700), DRY),
    forest("forest", DRY, (28, 4)),
    levels("unshared", "", (3,), (700,), DRY),
]
PREFILL = levels("prefill", "", (1, 2), (512, 512), DRY, rows=512)


def dense(query: Tensor, keys: Tensor, values: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """`[rows, heads, dim]` over `[tokens, kv_heads, dim]`, in fp64; the causal mask is aligned at the end."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (side.double().repeat_interleave(group, 1) for side in (keys, values))
    scores = torch.einsum("rhd,thd->rht", query.double(), keys) * scale
    if causal:
        seen = torch.ones(len(query), len(keys), dtype=torch.bool).tril(len(keys) - len(query))
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse)[..., None])
    return torch.einsum("rht,thd->rhd", weights, values), lse


class Pages:
    """One level: groups of rows, each over a list of pages."""

    def __init__(self, rows: Tensor, starts: Tensor, indices: Tensor, last: Tensor, page: int) -> None:
        assert {each.dtype for each in (rows, starts, indices, last)} == {torch.int32}
        self.arrays = [each.tolist() for each in (rows, starts, indices, last)]
        self.page = page

    def run(
        self, query: Tensor, stored: tuple[Tensor, Tensor], scale: float, causal: bool
    ) -> tuple[Tensor, Tensor]:
        rows, starts, indices, last = self.arrays
        outs, lses = [], []
        for group in range(len(last)):
            own = indices[starts[group] : starts[group + 1]]
            tokens = max(0, len(own) - 1) * self.page + last[group]
            keys, values = (side[own].flatten(0, 1)[:tokens] for side in stored)
            out, lse = dense(query[rows[group] : rows[group + 1]], keys, values, scale, causal)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses)


class Cascade:
    def __init__(self, num_levels: int, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert kv_layout == "NHD"
        self.depth = num_levels

    def plan(
        self,
        qo_indptr_arr: list[Tensor],
        paged_kv_indptr_arr: list[Tensor],
        paged_kv_indices_arr: list[Tensor],
        paged_kv_last_page_len: list[Tensor],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        causal: bool = False,
        *,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        arrays = (qo_indptr_arr, paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len)
        assert {len(each) for each in arrays} == {self.depth}
        self.levels = [Pages(*each, page_size) for each in zip(*arrays)]
        self.scale, self.causal = sm_scale, causal

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        parts = [
            level.run(q, paged_kv_cache, self.scale, self.causal and place == self.depth - 1)
            for place, level in enumerate(self.levels)
        ]
        weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0)
        return (torch.stack([out for out, _ in parts]) * weights[..., None]).sum(0)


class Decode:
    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str, *, use_tensor_cores: bool) -> None:
        assert kv_layout == "NHD"

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
    ) -> None:
        rows = torch.arange(len(indptr), dtype=torch.int32)
        self.pages, self.scale = Pages(rows, indptr, indices, last_page_len, page_size), sm_scale

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        return self.pages.run(q, paged_kv_cache, self.scale, False)[0]


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("flashinfer")
    module.MultiLevelCascadeAttentionWrapper = Cascade
    module.BatchDecodeWithPagedKVCacheWrapper = Decode
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr("bench.gpu.peers.flashinfer_pages.WORKSPACE_BYTES", 16)


@pytest.mark.usefixtures("flashinfer")
@pytest.mark.parametrize(
    ("peer", "shape"),
    [
        *((FlashInferCascade(), shape) for shape in [*DECODE, PREFILL]),
        *((FlashInferDecode(), s) for s in DECODE),
    ],
    ids=lambda each: each.name,
)
def test_flashinfer_is_asked_for_the_same_attention(peer: Any, shape: Shape) -> None:
    case = ours.build(shape, CPU, "float16")
    call = peer.prepare(case)
    assert difference(call(), gate.oracle(case)[0]) < 1e-6
    assert call.plan_seconds > 0


def recent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """As in torch 2.13: group queries are asked for."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    return packed(query, key, value, cu_seq_q, cu_seq_k, scale, window_size == (-1, 0))


def early(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> Tensor:
    """As in the first releases: the default scale, and as many key heads as query heads."""
    if query.shape[1] != key.shape[1]:
        raise RuntimeError("heads differ")
    return packed(query, key, value, cu_seq_q, cu_seq_k, None, is_causal)


def packed(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, starts: Tensor, scale: float | None, causal: bool
) -> Tensor:
    outs = []
    for request in range(len(rows) - 1):
        own, seen = (slice(*each[request : request + 2].tolist()) for each in (rows, starts))
        outs.append(dense(query[own], key[seen], value[seen], scale or query.shape[-1] ** -0.5, causal)[0])
    return torch.cat(outs)


@pytest.mark.parametrize("attention", [recent, early])
@pytest.mark.parametrize("shape", [*DECODE, PREFILL], ids=lambda shape: shape.name)
def test_varlen_in_either_form(
    attention: Callable[..., Tensor], shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attention)
    case = ours.build(shape, CPU, "float16")
    assert difference(Varlen().prepare(case)(), gate.oracle(case)[0]) < 1e-6


def test_the_stopwatch_flushes_sleeps_and_takes_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    milliseconds = iter([9.0, *([2.0, 3.0, 100.0] * 40)])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            happened.append("event")

        def synchronize(self) -> None:
            happened.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return next(milliseconds)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append("sleep" if cycles > 0 else "no"))
    monkeypatch.setattr(stopwatch, "FLUSH_BYTES", 8)
    timing = stopwatch.CudaStopwatch(CPU, 0.2).measure(lambda: happened.append("call"))
    assert happened[:3] == ["call"] * 3, "the host's time first"
    once = ["sleep", "event", "call", "event", "wait"]
    assert happened[3:] == once * (timing.runs + 1)
    assert 7 <= timing.runs <= 50
    assert timing.seconds == pytest.approx(3e-3)
    assert timing.fastest_seconds == pytest.approx(2e-3)
