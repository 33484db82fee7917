"""Numbers as people read them."""

from __future__ import annotations

import pytest

from kvtrie.api.cli.quantities import shown_bytes, shown_seconds


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**30 - 1, "1.0 GiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_bytes(size, text):
    assert shown_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_seconds(seconds, text):
    assert shown_seconds(seconds) == text
