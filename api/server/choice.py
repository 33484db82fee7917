"""One choice of an answer: a completion's tokens as text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from kvtrie.api.engine.text_stream import TextStream
from kvtrie.api.server.generation import TokenStream
from kvtrie.api.server.replies import FinishReason
from kvtrie.api.server.stop_text import StopText


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a choice."""

    choice: int
    """The choice's index."""
    text: str
    finish_reason: FinishReason | None
    """Of the last piece, which every choice has; None before it."""


class Choice:
    """Decodes a completion, ends it at a stop string, and counts its tokens.

    Args:
        index: among the answer's choices.
        stream: its tokens.
        text: a stream that begins behind the prompt; None where there is no tokenizer.
        stops: strings that end it and are no part of its text.
    """

    def __init__(
        self, index: int, stream: TokenStream, text: TextStream | None, stops: Sequence[str]
    ) -> None:
        self.index = index
        self.stream = stream
        self.tokens = 0
        """Tokens computed and used, the one that ended it included."""
        self.arrivals: list[tuple[float, int]] = []
        """When tokens came, and how many; seconds of `time.perf_counter`."""
        self.said: list[str] = []
        """Text so far, in pieces."""
        self.ended_by: FinishReason | None = None
        """None while it is under way, and where it was left."""
        self._text = text
        self._stop = StopText(stops)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yields the choice, piece by piece; the last one has the finish reason.

        Raises:
            KvtrieError: what ended the request.
        """
        completion = self.stream.completion
        async for tokens in self.stream.fresh():
            self.arrivals.append((time.perf_counter(), len(tokens)))
            said = []
            for token in tokens:
                self.tokens += 1
                said.append(self._add(token, token in completion.request.eos))
                if self._stop.is_found:
                    break
            if self._stop.is_found:
                self.stream.end()
                yield self._piece("".join(said), "stop")
                return
            if text := "".join(said):
                yield self._piece(text, None)
        rest = "" if self._text is None else self._stop.add(self._text.finish())
        rest += self._stop.finish()
        is_stopped = completion.finish_reason == "stop" or self._stop.is_found
        yield self._piece(rest, "stop" if is_stopped else "length")

    @property
    def whole_tokens(self) -> list[int] | None:
        """Its tokens without the one that ended it; None where a stop string cut its text, or it was left."""
        if self.ended_by is None or self._stop.is_found:
            return None
        completion = self.stream.completion
        tokens = list(completion.tokens)
        return tokens[:-1] if tokens and tokens[-1] in completion.request.eos else tokens

    def _piece(self, text: str, reason: FinishReason | None) -> Piece:
        self.said.append(text)
        self.ended_by = reason
        return Piece(self.index, text, reason)

    def _add(self, token: int, is_end: bool) -> str:
        if self._text is None or is_end:
            return ""
        return self._stop.add(self._text.add(token))


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[Piece, None]:
    """Pieces of all choices as they come.

    Raises:
        KvtrieError: what ended the first request that failed.
    """
    if len(choices) == 1:
        async for piece in choices[0].pieces():
            yield piece
        return
    queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def pump(choice: Choice) -> None:
        try:
            async for piece in choice.pieces():
                queue.put_nowait(piece)
        # Raised again where the pieces are read.
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        left = len(choices)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            left -= found.finish_reason is not None
            yield found
    finally:
        for task in tasks:
            task.cancel()
