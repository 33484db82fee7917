"""Frames and lookups: any cut, any length, any split."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrie.api.http.record_frames import FrameReader, frame, framed_bytes, parse_get, parse_match
from kvtrie.prefix_tree.errors import InputError

RECORDS = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


class TestFrames:
    @given(RECORDS, st.integers(1, 50))
    def test_come_back_however_they_are_split(self, records: list[bytes], step: int) -> None:
        body, reader = frame(records), FrameReader(max_record_bytes=40)
        assert framed_bytes(records) == len(body)
        found = [r for at in range(0, len(body), step) for r in reader.feed(body[at : at + step])]
        reader.finish()
        assert found == records

    def test_every_cut_is_seen(self) -> None:
        body = frame([b"abc", b"defgh"])
        for end in set(range(1, len(body))) - {11}:
            reader = FrameReader(max_record_bytes=40)
            reader.feed(body[:end])
            with pytest.raises(InputError, match="into a frame"):
                reader.finish()

    @pytest.mark.parametrize("length", [0, 41, 1 << 32, (1 << 64) - 1])
    def test_a_length_is_not_believed(self, length: int) -> None:
        with pytest.raises(InputError, match="a record has 1 to 40"):
            FrameReader(max_record_bytes=40).feed(struct.pack("<Q", length))


class TestLookups:
    def test_are_taken_apart(self) -> None:
        assert parse_get(bytes(32) + b"a" * 16 + b"b" * 16).keys == [b"a" * 16, b"b" * 16]
        assert parse_match(bytes(32) + b"abcd").rest == b"abcd"
        assert parse_get(bytes(32)).keys == []

    @pytest.mark.parametrize("body", [b"", bytes(31), bytes(32) + b"abc"])
    def test_must_be_whole(self, body: bytes) -> None:
        for parse in (parse_get, parse_match):
            with pytest.raises(InputError, match="namespace digest"):
                parse(body)
