"""Capacities as people write them: a part of a trace's blocks, bytes of KV, or blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvtrie.api.byte_size import parse_bytes
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class Capacity:
    """One capacity, of whichever kind was written; exactly one field is set."""

    text: str
    fraction: float | None = None
    """Fraction of a trace's unique blocks."""
    size_bytes: int | None = None
    blocks: int | None = None

    def in_blocks(self, unique_blocks: int, block_bytes: int | None) -> int:
        """Whole blocks, for a trace of `unique_blocks` blocks of `block_bytes` bytes each.

        Raises:
            InputError: bytes without knowing how many bytes a block has, or room for less than one block.
        """
        if self.blocks is not None:
            return self.blocks
        if self.fraction is not None:
            # Less than a block of a short trace is still a cache, the smallest.
            return max(1, int(self.fraction * unique_blocks))
        assert self.size_bytes is not None
        if block_bytes is None:
            raise InputError(
                f"capacity {self.text} is in bytes: pass --model-config FILE, which says how many a token takes"
            )
        if self.size_bytes < block_bytes:
            raise InputError(f"capacity {self.text} is less than one block of {block_bytes} bytes")
        return self.size_bytes // block_bytes


def parse_capacities(text: str) -> list[Capacity]:
    """`1%,5%`, `4GiB` or `5000blocks`, separated by commas.

    Raises:
        InputError: one of them is none of these.
    """
    return [_parse(part.strip()) for part in text.split(",")]


def _parse(text: str) -> Capacity:
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        fraction = float(found[1]) / 100
        if fraction <= 0:
            raise InputError(f"capacity {text} is nothing; give more than 0%")
        return Capacity(text, fraction=fraction)
    if found := re.fullmatch(r"(\d{1,15})\s*blocks?", text):
        if int(found[1]) < 1:
            raise InputError(f"capacity {text} is nothing; give at least 1 block")
        return Capacity(text, blocks=int(found[1]))
    if re.search("[A-Za-z]", text):
        return Capacity(text, size_bytes=parse_bytes(text))
    raise InputError(f"capacity {text!a} is not like 5%, 4GiB or 5000blocks")
