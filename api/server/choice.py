"""One choice of an answer: a completion's tokens as text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from kvtrie.api.engine.sampling.logprobs import ChosenLogprobs
from kvtrie.api.engine.sampling.stop_strings import StoppedText
from kvtrie.api.server.generation import TokenStream
from kvtrie.api.server.replies import FinishReason


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a choice."""

    choice: int
    """The choice's index."""
    text: str
    logprobs: list[ChosenLogprobs]
    """Of its tokens, where they are asked for: those since the piece before it, without the one that ended it."""
    finish_reason: FinishReason | None
    """Of the last piece, which every choice has; None before it."""


class Choice:
    """Decodes a completion, ends it at a stop string, and counts its tokens.

    Args:
        index: among the answer's choices.
        stream: its tokens.
        text: its text, which stop strings may end; None where there is no tokenizer.
        on_tokens: called with the seconds since tokens came before, and how many have come. Not for the first.
    """

    def __init__(
        self,
        index: int,
        stream: TokenStream,
        text: StoppedText | None,
        on_tokens: Callable[[float, int], object],
    ) -> None:
        self.index = index
        self.stream = stream
        self.tokens = 0
        """Tokens computed and used, the one that ended it included."""
        self.said: list[str] = []
        """Text so far, in pieces."""
        self.logprobs: list[ChosenLogprobs] = []
        """Of the tokens so far, where they are asked for."""
        self.ended_by: FinishReason | None = None
        """None while it is under way, and where it was left."""
        self._text = text
        self._on_tokens = on_tokens
        self._told = 0
        """How many of `logprobs` were in pieces."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yields the choice, piece by piece; the last one has the finish reason.

        Raises:
            KvtrieError: what ended the request.
        """
        completion = self.stream.completion
        before: float | None = None
        async for tokens in self.stream.fresh():
            now = time.perf_counter()
            if before is not None:
                self._on_tokens(now - before, len(tokens))
            before = now
            said = []
            for token in tokens:
                said.append(self._add(token))
                if self._is_stopped:
                    self.stream.end()
                    yield self._piece("".join(said), "stop")
                    return
            if text := "".join(said):
                yield self._piece(text, None)
        rest = "" if self._text is None else self._text.finish()
        yield self._piece(rest, "stop" if completion.finish_reason == "stop" else "length")

    @property
    def whole_tokens(self) -> list[int] | None:
        """Its tokens without the one that ended it; None where a stop string cut its text, or it was left."""
        if self.ended_by is None or self._is_stopped:
            return None
        completion = self.stream.completion
        tokens = list(completion.tokens)
        return tokens[:-1] if tokens and tokens[-1] in completion.request.ends else tokens

    @property
    def _is_stopped(self) -> bool:
        """Whether a stop string has ended it."""
        return self._text is not None and self._text.stopped_by is not None

    def _add(self, token: int) -> str:
        completion, place = self.stream.completion, self.tokens
        self.tokens += 1
        if token in completion.request.ends:
            return ""
        if completion.request.sampling.logprobs is not None:
            self.logprobs.append(completion.logprobs[place])
        return "" if self._text is None else self._text.add(token)

    def _piece(self, text: str, reason: FinishReason | None) -> Piece:
        self.said.append(text)
        self.ended_by = reason
        fresh = self.logprobs[self._told :]
        self._told = len(self.logprobs)
        return Piece(self.index, text, fresh, reason)


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
