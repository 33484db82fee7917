"""Partial attention: (out, lse) over some of a row's keys, and the exact merge of two of them."""

from __future__ import annotations

import torch
from torch import Tensor


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
        # it crashes and for a fully masked row its lse is 0, so callers never ask for either.
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
) -> tuple[Tensor, Tensor]:
    """As `partial_attention`, from plain torch operations in fp32, on any device and any dims."""
    batch, q_heads, rows, _ = query.shape
    kv_heads, tokens = key.shape[1:3]
    grouped = query.float().reshape(batch, kv_heads, -1, query.shape[-1])
    scores = torch.matmul(grouped, key.float().transpose(-1, -2)) * scale
    scores = scores.view(batch, q_heads, rows, tokens)
    if mask is not None:
        scores = scores + mask
    if causal:
        square = torch.ones(rows, tokens, dtype=torch.bool, device=query.device).triu_(1)
        scores = scores.masked_fill(square, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse[..., None]).view(batch, kv_heads, -1, tokens)
    out = torch.matmul(weights, value.float()).view(batch, q_heads, rows, -1)
    return out, lse


def merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merges a non-empty partial into another: exact, because softmax over a union is a weighted mean.

    Shapes `[rows, heads, dim]` and `[rows, heads]`, fp32. An empty side is out 0 and lse -inf.
    """
    total = torch.logaddexp(lse, part_lse)
    merged = out * torch.exp(lse - total)[..., None] + part_out * torch.exp(part_lse - total)[..., None]
    return merged, total
