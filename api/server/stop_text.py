"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text on up to the first stop string, and holds back what may be the beginning of one.

    Time is linear in the text, for stop strings of bounded length.

    Args:
        stops: not empty strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False
        """Whether a stop string has been found; nothing is passed on from there."""

    def add(self, piece: str) -> str:
        """The text that is certain to come before any stop string."""
        if self.is_found or not self._stops:
            return "" if self.is_found else piece
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_found, self._held = True, ""
            return text[: min(places)]
        kept = max(self._beginning(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, when nothing follows."""
        rest, self._held = self._held, ""
        return rest

    def _beginning(self, text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a beginning of `stop`."""
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
