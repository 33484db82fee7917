"""The device pool: where the keys and values of chunks stand while they are attended to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtrie.chunk_kernels.slots import SlotAllocator
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.shape import ChunkShape

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ChunkPool:
    """`slots` chunks on one device, head first: a run of adjacent slots is a strided `[kv_heads, tokens, dim]`.

    Args:
        shape: one chunk's shape and dtype.
        slots: capacity in chunks.
        device: where the tensors live.

    Raises:
        InputError: fewer than one slot.
    """

    def __init__(self, shape: ChunkShape, slots: int, device: torch.device | str = "cpu") -> None:
        if slots < 1:
            raise InputError(
                f"the pool has room for {slots} chunks of {shape.chunk_bytes} bytes; give it more memory"
            )
        self.shape = shape
        self.device = torch.device(device)
        self.dtype = TORCH_DTYPES[shape.dtype]
        self.free_slots = SlotAllocator(slots)
        sizes = (shape.layers, shape.kv_heads, slots, shape.chunk_tokens)
        # Zeros, not empty: padded slab lanes are masked, but a NaN there would still reach the output.
        self.k = torch.zeros(*sizes, shape.key_dim, dtype=self.dtype, device=self.device)
        """`[layers, kv_heads, slots, chunk_tokens, key_dim]`"""
        self.v = torch.zeros(*sizes, shape.value_dim, dtype=self.dtype, device=self.device)
        """`[layers, kv_heads, slots, chunk_tokens, value_dim]`"""

    @property
    def slots(self) -> int:
        """Capacity in chunks."""
        return self.free_slots.slots

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts new tokens' keys `[rows, kv_heads, key_dim]` and values into their places.

        `positions` int64 `[rows]`: slot * chunk_tokens + offset within the chunk.

        Raises:
            InputError: wrong dtype, device or shape.
        """
        expected = (positions.shape[0], self.shape.kv_heads, self.shape.key_dim)
        if key.shape != expected or value.shape != (*expected[:2], self.shape.value_dim):
            raise InputError(
                f"keys {tuple(key.shape)} and values {tuple(value.shape)} do not fit a pool of "
                f"{self.shape.kv_heads} KV heads, dims {self.shape.key_dim}/{self.shape.value_dim}, for "
                f"{positions.shape[0]} rows"
            )
        if key.dtype != self.dtype or key.device.type != self.device.type:
            raise InputError(
                f"keys are {key.dtype} on {key.device}, the pool is {self.dtype} on {self.device}; wrap the "
                "model again after changing its dtype or device"
            )
        self.k[layer].flatten(1, 2).index_copy_(1, positions, key.transpose(0, 1))
        self.v[layer].flatten(1, 2).index_copy_(1, positions, value.transpose(0, 1))

    def copy_columns(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` tokens of one slot to another, in every layer."""
        self.k[:, :, target, :tokens] = self.k[:, :, source, :tokens]
        self.v[:, :, target, :tokens] = self.v[:, :, source, :tokens]

    def clear(self, slots: list[int]) -> None:
        """Zeroes slots whose contents may not be finite."""
        self.k[:, :, slots] = 0
        self.v[:, :, slots] = 0

    def read_chunk(self, slot: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """One chunk's bytes on the host: keys uint8 `[layers, key_bytes]`, values `[layers, value_bytes]`."""
        return _to_bytes(self.k[:, :, slot]), _to_bytes(self.v[:, :, slot])

    def write_chunk(self, slot: int, keys: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> None:
        """Puts bytes as `read_chunk` returns them into a slot."""
        for target, source in ((self.k, keys), (self.v, values)):
            place = target[:, :, slot]
            # A copy, because bytes from a store are read-only and torch wants to own what it views.
            host = torch.from_numpy(np.array(source)).view(self.dtype)
            place.copy_(host.view(place.shape))


def _to_bytes(chunk: Tensor) -> npt.NDArray[np.uint8]:
    flat = chunk.contiguous().cpu().view(torch.uint8)
    array: npt.NDArray[np.uint8] = flat.reshape(chunk.shape[0], -1).numpy()
    return array
