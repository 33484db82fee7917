"""Digests of tensors' contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in order; without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().contiguous().flatten().cpu()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes; hashlib releases the GIL, so threads help."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        parts = sorted(threads.map(_digest_tensor, tensors))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest_tensor(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    content = hashlib.sha256(tensor_bytes(tensor)).hexdigest() if tensor.numel() else ""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}"
