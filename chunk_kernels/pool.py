"""The device pool: keys and values of chunks, as attention reads them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvtrie.chunk_kernels.quantise import STORED_DTYPES, StoredLayer, check_format, quantise
from kvtrie.chunk_kernels.slot_allocator import SlotAllocator
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.shape import ChunkShape

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ChunkPool:
    """`slots` chunks on one device, head first: a run of adjacent slots is a strided `[kv_heads, tokens, dim]`.

    Args:
        shape: one chunk's shape, dtype and format.
        slots: capacity in chunks.
        device: device of the tensors.

    Raises:
        InputError: fewer than one slot, or a format the device does not compute on.
    """

    def __init__(self, shape: ChunkShape, slots: int, device: torch.device | str = "cpu") -> None:
        if slots < 1:
            raise InputError(
                f"the pool has room for {slots} chunks of {shape.chunk_bytes} bytes; give it more memory"
            )
        self.device = torch.device(device)
        check_format(shape.kv_format, self.device)
        self.shape = shape
        self.dtype = TORCH_DTYPES[shape.dtype]
        """Dtype that the model computes with; raw elements are stored in it."""
        stored_dtype = STORED_DTYPES[shape.kv_format] if shape.is_quantised else self.dtype
        self.free_slots = SlotAllocator(slots)
        sizes = (shape.layers, shape.kv_heads, slots, shape.chunk_tokens)
        self.k_scale: Tensor | None = None
        """fp32 `[layers, kv_heads, slots, chunk_tokens]` of a quantised pool; None of a raw one."""
        self.v_scale: Tensor | None = None
        """As `k_scale`, for values."""
        # A caller's inference mode ends before the pool does, and what is made in it cannot be written after it.
        with torch.inference_mode(False):
            # Zeros, not empty: padded slab lanes are masked, but a NaN there would still reach the output.
            self.k = torch.zeros(*sizes, shape.key_dim, dtype=stored_dtype, device=self.device)
            """`[layers, kv_heads, slots, chunk_tokens, key_dim]`"""
            self.v = torch.zeros(*sizes, shape.value_dim, dtype=stored_dtype, device=self.device)
            """`[layers, kv_heads, slots, chunk_tokens, value_dim]`"""
            if shape.is_quantised:
                self.k_scale = torch.zeros(*sizes, dtype=torch.float32, device=self.device)
                self.v_scale = torch.zeros(*sizes, dtype=torch.float32, device=self.device)

    @property
    def slots(self) -> int:
        """Capacity in chunks."""
        return self.free_slots.slots

    def keys(self, layer: int, dtype: torch.dtype | None = None) -> StoredLayer:
        """One layer's keys, to be read in `dtype`; default the pool's."""
        return StoredLayer(
            self.k[layer], None if self.k_scale is None else self.k_scale[layer], dtype or self.dtype
        )

    def values(self, layer: int, dtype: torch.dtype | None = None) -> StoredLayer:
        """One layer's values, to be read in `dtype`; default the pool's."""
        return StoredLayer(
            self.v[layer], None if self.v_scale is None else self.v_scale[layer], dtype or self.dtype
        )

    def check_new(self, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Whether new keys and values fit the pool, by what is known without looking at a device's memory.

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
        for name, new in (("keys", key), ("values", value)):
            if new.dtype != self.dtype or new.device.type != self.device.type:
                raise InputError(
                    f"{name} are {new.dtype} on {new.device}, the pool is {self.dtype} on {self.device}; wrap "
                    "the model again after changing its dtype or device"
                )

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts new tokens' keys `[rows, kv_heads, key_dim]` and values into their places, with torch.

        `positions` int64 `[rows]`: slot * chunk_tokens + offset within the chunk; a row whose position is
        negative is left out.

        Raises:
            InputError: wrong dtype, device or shape.
        """
        self.check_new(positions, key, value)
        idle = positions < 0
        if bool(idle.any()):
            positions, key, value = positions[~idle], key[~idle], value[~idle]
        for new, stored, scales in ((key, self.k, self.k_scale), (value, self.v, self.v_scale)):
            heads_first = new.transpose(0, 1)
            if scales is not None:
                heads_first, scale = quantise(heads_first, self.shape.kv_format)
                scales[layer].flatten(1, 2).index_copy_(1, positions, scale)
            _as_moved(stored[layer].flatten(1, 2)).index_copy_(1, positions, _as_moved(heads_first))

    def copy_columns(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` columns (a token's place in a slot each) of one slot to another, in every
        layer."""
        for stored in self._stored():
            stored[:, :, target, :tokens] = stored[:, :, source, :tokens]

    def clear(self, slots: list[int]) -> None:
        """Zeroes slots whose contents may not be finite."""
        for stored in self._stored():
            stored[:, :, slots] = 0

    def read_chunk(self, slot: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """One chunk's bytes on the host: keys uint8 `[layers, key_bytes]`, values `[layers, value_bytes]`.

        A quantised layer's elements are followed by their scales.
        """
        keys, values = self._parts()
        return _to_bytes([part[:, :, slot] for part in keys]), _to_bytes(
            [part[:, :, slot] for part in values]
        )

    def write_chunk(self, slot: int, keys: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> None:
        """Puts bytes as `read_chunk` returns them into a slot."""
        for source, parts in zip((keys, values), self._parts()):
            start = 0
            for stored in parts:
                place = stored[:, :, slot]
                end = start + place.numel() * place.element_size() // self.shape.layers
                # A copy, because bytes from a store are read-only and torch wants to own what it views.
                host = torch.from_numpy(np.array(source[:, start:end], order="C")).view(stored.dtype)
                place.copy_(host.view(place.shape))
                start = end

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors that keys consist of, and those of values: elements, then scales if the pool is quantised."""
        return (
            [self.k] if self.k_scale is None else [self.k, self.k_scale],
            [self.v] if self.v_scale is None else [self.v, self.v_scale],
        )

    def _stored(self) -> list[Tensor]:
        """All stored tensors: `[layers, kv_heads, slots, chunk_tokens]`, elements with a dim besides."""
        keys, values = self._parts()
        return keys + values


def _to_bytes(parts: list[Tensor]) -> npt.NDArray[np.uint8]:
    """The parts' bytes side by side, uint8 `[layers, bytes]`."""
    rows: list[npt.NDArray[np.uint8]] = [
        part.contiguous().cpu().view(torch.uint8).reshape(part.shape[0], -1).numpy() for part in parts
    ]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def _as_moved(elements: Tensor) -> Tensor:
    """float8 as its bytes: torch moves those, and has no `index_copy_` for the type."""
    return elements.view(torch.uint8) if elements.dtype == torch.float8_e4m3fn else elements
