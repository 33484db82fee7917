"""Sizes as people write them."""

from __future__ import annotations

import pytest

from kvtrie.api.byte_size import parse_bytes
from kvtrie.prefix_tree.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2G", 2_147_483_648),
        ("2g", 2_147_483_648),
        ("2GiB", 2_147_483_648),
        ("2Gi", 2_147_483_648),
        ("2 GiB", 2_147_483_648),
        ("2GB", 2_000_000_000),
        ("512M", 536_870_912),
        ("512m", 536_870_912),
        ("512MB", 512_000_000),
        ("512k", 524_288),
        ("512K", 524_288),
        ("512kB", 512_000),
        ("1T", 1_099_511_627_776),
        ("1TB", 1_000_000_000_000),
        ("1.5G", 1_610_612_736),
        (".5G", 536_870_912),
        ("1.G", 1_073_741_824),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        (" 1 ", 1),
        # Floats have 53 bits.
        ("9007199254740993", 9_007_199_254_740_993),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "2Q", "2 2G", "-2G", "2GBit", "2,5G", "1e9", "nan", "inf", "٢G", True, "2GiBs", "\x1b[2J"],
)
def test_what_is_no_size(text):
    with pytest.raises(InputError, match=r"is not like 2GiB, 2G, 512MB or 4096") as caught:
        parse_bytes(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["0", "0G", "0.5", ".0001k"])
def test_less_than_a_byte(text):
    with pytest.raises(InputError, match="less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "G", "8388608T", 2**63])
def test_more_than_there_is(text):
    with pytest.raises(InputError, match=r"beyond 2\^63 bytes"):
        parse_bytes(text)
