"""Stop strings in pieces: the same text as in one piece, whatever the cuts."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kvtrie.api.server.stop_text import StopText

TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def passed_on(stops: list[str], pieces: list[str]) -> str:
    stop = StopText(stops)
    return "".join(map(stop.add, pieces)) + stop.finish()


@given(STOPS, TEXT)
def test_one_piece_is_cut_at_the_first_stop(stops: list[str], text: str) -> None:
    ends = [text.find(stop) for stop in stops if stop in text]
    assert passed_on(stops, [text]) == (text[: min(ends)] if ends else text)


@given(st.text("ab", min_size=1, max_size=4), TEXT, st.lists(st.integers(0, 30), max_size=6))
def test_cuts_change_nothing(stop: str, text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert passed_on([stop], pieces) == passed_on([stop], [text])


def test_what_may_begin_a_stop_is_held_back_and_no_more() -> None:
    stop = StopText(["END", "EN route"])
    assert stop.add("The E") == "The "
    assert stop.add("N") == ""
    assert stop.add("D of it") == ""
    assert stop.is_found
    assert stop.add("more") == stop.finish() == ""
    stop = StopText(["END"])
    assert stop.add("an E") == "an "
    assert stop.add("Xtra") == "EXtra"
    assert stop.add("EN") == ""
    assert stop.finish() == "EN"
    assert not stop.is_found
