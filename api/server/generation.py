"""Requests to the engine from the event loop, and their tokens as they are computed.

All that the server asks of the engine is here. An `EngineLoop` steps it, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from anyio.to_thread import run_sync

from kvtrie.api.engine.loop import EngineLoop
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.prefix_tree.errors import EngineStopped
from kvtrie.prefix_tree.keys import TokenArray


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion of one prompt."""

    tokens: TokenArray
    """The prompt, int32 `[tokens]`."""
    tenant: str | None
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    cache_salt: str = ""
    priority: int = 0


class TokenStream:
    """One completion's tokens. Used on the event loop only."""

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        self._moved = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        completion.add_token_callback(lambda _: self._move())
        completion.add_done_callback(lambda _: self._move())

    async def fresh(self) -> AsyncIterator[list[int]]:
        """Yields new tokens as they come, several where they came at once; ends with the completion.

        Raises:
            EngineStopped: the engine has failed, or is about to end.
            KvtrieError: what ended the request.
        """
        seen = 0
        while True:
            is_done = self.completion.done
            tokens = self.completion.tokens[seen:]
            if tokens:
                seen += len(tokens)
                yield tokens
            if is_done:
                break
            if not tokens:
                await self._moved.wait()
                self._moved.clear()
        if self.completion.error is not None:
            raise self.completion.error
        if self.completion.finish_reason == "cancelled":
            raise EngineStopped("the request was cancelled, as the server is about to stop")

    def end(self) -> None:
        """Asks for an end, if it has not ended: what it holds is free at the next step."""
        if not self.completion.done:
            self.completion.cancel()

    def _move(self) -> None:
        """Tells the event loop to look. Called by the engine's thread, or at once."""
        try:
            self._loop.call_soon_threadsafe(self._moved.set)
        except RuntimeError:
            # The event loop has ended, and whoever waited there with it.
            if not self._loop.is_closed():
                raise


class Generation:
    """The engine's loop, and what it works on.

    Args:
        model: the caller's to close, after `stop`.
    """

    def __init__(self, model: PrefixCachedModel) -> None:
        self.model = model
        self.is_draining = False
        """Whether the server is about to stop; requests under way go on."""
        self._engine_loop = EngineLoop(model.engine)

    def start(self) -> None:
        """Begins to step."""
        self._engine_loop.start()

    def stop(self) -> None:
        """Ends the loop with the step under way, and cancels what is not done."""
        self._engine_loop.stop(drain=False)

    @property
    def has_failed(self) -> bool:
        """Whether an error has ended the loop: nothing is computed any more."""
        return self._engine_loop.failed.is_set()

    @property
    def state(self) -> Literal["ok", "failed", "stopping"]:
        """For those who ask whether requests are served."""
        if self.has_failed:
            return "failed"
        return "stopping" if self.is_draining else "ok"

    async def begin(self, wanted: Wanted) -> TokenStream:
        """Queues a request.

        Raises:
            EngineStopped: the engine has failed, or is about to end.
            QueueFull: as many requests wait already as may.
            InputError: what `PrefixCachedModel.submit` refuses.
            PoolExhausted: the prompt can never fit the pool.
        """
        if wanted.sampling.constraint is None:
            return TokenStream(self._submit(wanted))
        # Opening a grammar may take a second.
        return TokenStream(await self._submit_in_thread(wanted))

    def _submit(self, wanted: Wanted) -> Completion:
        return self.model.submit(
            wanted.tokens,
            tenant=wanted.tenant,
            max_new_tokens=wanted.max_new_tokens,
            sampling=wanted.sampling,
            cache_salt=wanted.cache_salt,
            priority=wanted.priority,
        )

    async def _submit_in_thread(self, wanted: Wanted) -> Completion:
        submitted: list[Completion] = []
        is_left = threading.Event()

        def submit() -> Completion:
            submitted.append(self._submit(wanted))
            if is_left.is_set():
                submitted[0].cancel()
            return submitted[0]

        try:
            return await run_sync(submit)
        except BaseException:
            # Left meanwhile: whichever of the two comes second sees the other.
            is_left.set()
            for completion in submitted:
                completion.cancel()
            raise
