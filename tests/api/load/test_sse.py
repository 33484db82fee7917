"""Event streams: every split of the bytes, every line end, and what is no event stream."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from kvtrie.api.load.sse import LONGEST_EVENT_BYTES, Event, EventParser, MalformedStream

STREAM = (
    b"\xef\xbb\xbf: comment\n"
    b'data: {"a": 1}\n\n'
    b":keep-alive\r\n\r\n"
    b"event: error\r\ndata:no space\r\n\r\n"
    b"data: two\rdata:  lines\r\r"
    b"id: 7\nretry: 10\nunknown: x\ndata\ndata: \xc3\xa9\xe2\x82\xac\n\n"
    b"event: without data\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    Event('{"a": 1}'),
    Event("no space", "error"),
    # One space after the colon is the format's; a second one belongs to the value.
    Event("two\n lines"),
    Event("\né€"),
    Event("[DONE]"),
]


def parsed(pieces: list[bytes]) -> list[Event]:
    stream = EventParser()
    events = [event for piece in pieces for event in stream.feed(piece)]
    assert not stream.is_inside_an_event
    return events


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(STREAM)])
def test_pieces_of_any_size(size: int) -> None:
    assert parsed([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == EVENTS


def test_one_split_at_every_byte() -> None:
    for at in range(len(STREAM) + 1):
        assert parsed([STREAM[:at], b"", STREAM[at:]]) == EVENTS


def test_random_splits() -> None:
    draws = random.Random(3)
    for _ in range(200):
        cuts = sorted(draws.randrange(len(STREAM) + 1) for _ in range(draws.randrange(12)))
        ends = [0, *cuts, len(STREAM)]
        assert parsed([STREAM[a:b] for a, b in pairwise(ends)]) == EVENTS


def test_line_separators_of_text_are_no_line_ends() -> None:
    assert parsed(["data: a\u2028b\x0bc\x85d\n\n".encode()]) == [Event("a\u2028b\x0bc\x85d")]


def test_an_event_that_has_not_ended_is_none() -> None:
    stream = EventParser()
    assert stream.feed(b"data: whole line\n") == []
    assert stream.is_inside_an_event
    assert stream.feed(b"\n") == [Event("whole line")]
    assert not stream.is_inside_an_event
    assert stream.feed(b"dat") == []
    assert stream.is_inside_an_event


def test_what_is_no_event_stream_is_refused() -> None:
    with pytest.raises(MalformedStream, match="not UTF-8"):
        EventParser().feed(b"data: \xff\n")
    stream = EventParser()
    piece = b"x" * (1 << 20)
    for _ in range(LONGEST_EVENT_BYTES >> 20):
        assert stream.feed(piece) == []
    with pytest.raises(MalformedStream, match=f"more than {LONGEST_EVENT_BYTES} bytes"):
        stream.feed(piece)


def test_comments_without_end_are_no_long_event() -> None:
    stream = EventParser()
    comment = b":" + b" " * (1 << 20) + b"\n"
    for _ in range((LONGEST_EVENT_BYTES >> 20) + 2):
        assert stream.feed(comment) == []
    assert stream.feed(b"data: x\n\n") == [Event("x")]
