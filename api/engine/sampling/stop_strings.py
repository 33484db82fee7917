"""Stop strings: a completion ends where its text has one of them.

text of the tokens      The answer is 42.\\nUse        one stop string: "\\nUser:"
decided                 The answer is 42.             may be streamed
held back                                \\nUse        the beginning of a stop string; the next token decides
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtrie.api.engine.text_stream import TextStream


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces, in linear time (Knuth, Morris, Pratt).

    Args:
        strings: each at least one character.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self._fallbacks = [_fallbacks(string) for string in self.strings]
        self._matched = [0] * len(self.strings)
        """Of each string, how many characters of its beginning the text ends with."""

    @property
    def held(self) -> int:
        """How many characters at the text's end may be the beginning of a string."""
        return max(self._matched, default=0)

    def find(self, piece: str) -> tuple[str, int] | None:
        """Moves on by a piece of text.

        Returns:
            The string that is complete first, the longest of several, and the place in `piece` behind it; None
            where there is none.
        """
        for place, character in enumerate(piece):
            complete = [
                string for i, string in enumerate(self.strings) if self._advance(i, character) == len(string)
            ]
            if complete:
                return max(complete, key=len), place + 1
        return None

    def copy(self) -> StopStrings:
        """One that is as far."""
        found = object.__new__(StopStrings)
        found.strings, found._fallbacks, found._matched = self.strings, self._fallbacks, self._matched[:]
        return found

    def _advance(self, i: int, character: str) -> int:
        string, fallbacks, matched = self.strings[i], self._fallbacks[i], self._matched[i]
        while matched and string[matched] != character:
            matched = fallbacks[matched - 1]
        self._matched[i] = matched = matched + (string[matched] == character)
        return matched


def _fallbacks(string: str) -> list[int]:
    """For each beginning of a string, the length of its longest end that is a shorter beginning."""
    found = [0] * len(string)
    for i in range(1, len(string)):
        length = found[i - 1]
        while length and string[length] != string[i]:
            length = found[length - 1]
        found[i] = length + (string[length] == string[i])
    return found


class StoppedText:
    """Text of a completion that stop strings may end. Only the completion's own text counts, not the prompt's.

    Args:
        tokenizer: anything with `decode`.
        prompt: token ids that the completion continues.
        strings: that end it; none where only the text is wanted.
        included: the string that ended the completion stays in the text.
        least_tokens: strings that begin before so many tokens do not end it.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        strings: Sequence[str],
        included: bool = False,
        least_tokens: int = 0,
    ) -> None:
        self._stream = TextStream(tokenizer, prompt)
        self._stops = StopStrings(strings)
        self._included = included
        self._to_ignore = least_tokens
        self._held = ""
        self.stopped_by: str | None = None
        """The string that ended the text."""

    def add(self, token: int) -> str:
        """Moves on by a token, and returns the text that is decided with it. Sets `stopped_by`."""
        piece = self._stream.add(token)
        self._to_ignore -= 1
        if self._to_ignore >= 0:
            return piece
        if (found := self._stops.find(piece)) is None:
            self._held += piece
            # Characters may be complete that the next token could still change; if the text ends here, none does.
            pending = self._stream.pending
            if not pending or (found := self._stops.copy().find(pending)) is None:
                return self._release(self._stops.held)
            piece = pending
        string, end = found
        text = self._held + piece[:end]
        self._held, self.stopped_by = "", string
        return text if self._included else text[: -len(string)]

    def finish(self) -> str:
        """The rest, where no token follows."""
        if self.stopped_by is not None:
            return ""
        self._held += self._stream.finish()
        return self._release(0)

    def _release(self, held: int) -> str:
        end = len(self._held) - held
        text, self._held = self._held[:end], self._held[end:]
        return text
