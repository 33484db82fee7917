"""Partial attention: (out, lse) over some of a row's keys, and the exact merge of two of them."""

from __future__ import annotations

import torch
from torch import Tensor

NEGLIGIBLE = -80.0
"""Logarithm of a weight, relative to a row's largest, that fp32 cannot add to it. Such weights become 0 at
once: ALiBi makes many that are subnormal, on which the exponential and the product take several times as long."""


def partial_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over at least one key, with its log-sum-exp.

    Args:
        query: `[batch, q_heads, rows, key_dim]`.
        key: `[batch, kv_heads, tokens, key_dim]`, any strides; q_heads is a multiple of kv_heads.
        value: `[batch, kv_heads, tokens, value_dim]`.
        scale: factor on the scores.
        causal: row i sees tokens up to i (rows = tokens).
        mask: additive, broadcastable to `[batch, q_heads, rows, tokens]`; no row may be masked entirely.

    Returns:
        out `[batch, q_heads, rows, value_dim]` (dtype of query on the CPU path, else fp32), and natural-log
        lse `[batch, q_heads, rows]` in fp32.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        # Of the fused CPU kernels only this one hands out its lse. It takes strides and GQA; with no key
        # it crashes and for a fully masked row its lse is 0, so callers never ask for either: what may be
        # empty is computed by `composed_attention`.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, lse
    return composed_attention(query, key, value, scale, causal=causal, mask=mask)


def composed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As `partial_attention`, from plain torch operations in fp32: on any device, with any dims and any mask.

    Args:
        query, key, value, scale, causal: as `partial_attention`; there may be no key at all.
        mask: additive, broadcastable to `[batch, q_heads, rows, tokens]`; a row may be masked entirely.
        softcap: scores become softcap * tanh(score / softcap), before the mask is added.

    Returns:
        As `partial_attention`, both fp32; a row that sees nothing gives out 0, lse -inf.
    """
    batch, q_heads, rows, _ = query.shape
    kv_heads, tokens = key.shape[1:3]
    packed = q_heads // kv_heads * rows
    grouped = query.float().reshape(batch, kv_heads, packed, query.shape[-1])
    scores = torch.matmul(grouped, key.float().transpose(-1, -2)).mul_(scale)
    scores = scores.view(batch, q_heads, rows, tokens)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if mask is not None:
        scores = scores.add_(mask)
    if causal:
        square = torch.ones(rows, tokens, dtype=torch.bool, device=query.device).triu_(1)
        scores = scores.masked_fill_(square, -torch.inf)
    peak = scores.amax(-1) if tokens else scores.new_full(scores.shape[:-1], -torch.inf)
    weights = torch.threshold_(scores.sub_(finite(peak)[..., None]), NEGLIGIBLE, -torch.inf).exp_()
    total = weights.sum(-1)
    out = torch.matmul(weights.view(batch, kv_heads, packed, tokens), value.float())
    # A row with a key has a total of at least 1; the others' is 0, and so is their out.
    out = out.view(batch, q_heads, rows, -1).div_(total.clamp_min(1.0)[..., None])
    return out, peak + total.log()


def merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merges two partials: exact, because softmax over a union is a weighted mean.

    Shapes `[rows, heads, dim]` and `[rows, heads]`, fp32. An empty side is out 0 and lse -inf; both may be empty.
    """
    total = torch.logaddexp(lse, part_lse)
    anchor = finite(total)
    merged = out * torch.exp(lse - anchor)[..., None] + part_out * torch.exp(part_lse - anchor)[..., None]
    return merged, total


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """A finished row's attention with a sink in its softmax (GPT-OSS; StreamingLLM, arXiv 2309.17453).

    A sink is a key without a value, so it enters once per row, after the last merge: `sinks` fp32 `[heads]`,
    the rest as in `merge`.
    """
    total = torch.logaddexp(lse, sinks)
    return out * torch.exp(lse - finite(total))[..., None], total


def finite(lse: Tensor) -> Tensor:
    """The lse, or where that is -inf the lowest float: subtracting -inf from itself would be NaN, and not 0."""
    return lse.clamp_min(torch.finfo(torch.float32).min)
