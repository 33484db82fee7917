"""A completion's tokens in asyncio: `async for token in completion`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrie.api.engine.request import Completion


class TokenIterator:
    """Tokens of one completion, as they come, in the event loop that runs where it is made.

    Ends when the completion has its outcome. An iterator that is let go of before (`break`, a cancelled task,
    `aclose`) cancels the request.
    """

    def __init__(self, completion: Completion) -> None:
        # First, as it raises where no loop runs: then there is nothing to let go of.
        self._signal = _Signal(asyncio.get_running_loop())
        self._completion = completion
        self._seen = 0
        completion.add_token_callback(self._signal.give)
        completion.add_done_callback(self._signal.give)

    def __aiter__(self) -> TokenIterator:
        return self

    async def __anext__(self) -> int:
        """The next token.

        Raises:
            StopAsyncIteration: there is none.
            Exception: what ended the request.
        """
        completion, tokens = self._completion, self._completion.tokens
        while True:
            self._signal.take()
            # Looked at before the tokens: none is added afterwards.
            is_done = completion.done
            if self._seen < len(tokens):
                self._seen += 1
                return tokens[self._seen - 1]
            if is_done:
                if completion.error is not None:
                    raise completion.error
                raise StopAsyncIteration
            await self._signal.wait()

    async def aclose(self) -> None:
        """Cancels the request, unless it is done."""
        self._let_go()

    def __del__(self) -> None:
        if hasattr(self, "_completion"):
            self._let_go()

    def _let_go(self) -> None:
        if not self._completion.done:
            self._completion.cancel()


class _Signal:
    """Wakes an event loop from any thread. Apart from the iterator, which nobody else may keep alive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()
        self._is_given = False

    def give(self, _: object) -> None:
        """In any thread: there is news."""
        if not self._is_given:
            # Several tokens between two looks cost one call.
            self._is_given = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._event.set)

    def take(self) -> None:
        """In the event loop: what was given so far is looked at now."""
        self._event.clear()
        self._is_given = False

    async def wait(self) -> None:
        """In the event loop: waits for news."""
        await self._event.wait()
