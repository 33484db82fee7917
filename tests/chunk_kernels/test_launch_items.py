"""The kernel reads items and merges by place; these are the places of their fields."""

from __future__ import annotations

from kvtrie.chunk_kernels import attend_kernel
from kvtrie.chunk_kernels.launch_items import ITEM_FIELDS, MERGE_FIELDS, Item, Merge


def place(name: str) -> int:
    found: int = getattr(attend_kernel, name).value
    return found


def test_places_of_an_item_s_fields() -> None:
    assert [place(f"ITEM_{field.upper()}") for field in Item._fields] == list(range(ITEM_FIELDS))
    assert place("ITEM_FIELDS") == ITEM_FIELDS


def test_places_of_a_merge_s_fields() -> None:
    assert [place(f"MERGE_{field.upper()}") for field in Merge._fields] == list(range(MERGE_FIELDS))
    assert place("MERGE_FIELDS") == MERGE_FIELDS
