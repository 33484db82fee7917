"""Requests to the engine from the event loop, and their tokens as they are computed.

All that the server asks of the engine is here. A thread of its own steps it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anyio.to_thread import run_sync

from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.sampler import Sampling
from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.prefix_tree.errors import KvtrieError


class EngineFailed(KvtrieError):
    """The engine's thread has ended: nothing is computed any more."""


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion of one prompt."""

    tokens: Sequence[int]
    """The prompt."""
    tenant: str | None
    max_new_tokens: int
    eos: frozenset[int]
    """Tokens that end it; they have no text."""
    sampling: Sampling = field(default_factory=Sampling)
    cache_salt: str = ""


class TokenStream:
    """One completion's tokens. Used on the event loop only."""

    def __init__(self, completion: Completion, generation: Generation) -> None:
        self.completion = completion
        self._generation = generation
        self._moved = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def fresh(self) -> AsyncIterator[list[int]]:
        """Yields new tokens as they come, several where they came at once; ends with the completion.

        Raises:
            EngineFailed: the engine's thread has ended.
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
                self._generation.check()
                await self._moved.wait()
                self._moved.clear()
        if self.completion.error is not None:
            raise self.completion.error

    def end(self) -> None:
        """Asks for an end, if it has not ended: what it holds is free at the next step."""
        if not self.completion.done:
            self.completion.cancel()

    def moved(self) -> None:
        """Tells the event loop to look. Called by the thread that steps."""
        try:
            self._loop.call_soon_threadsafe(self._moved.set)
        except RuntimeError:
            # The event loop has ended, and whoever waited there with it.
            if not self._loop.is_closed():
                raise


class Generation:
    """The engine's thread, and what it works on.

    Args:
        model: the caller's to close, after `stop`.
    """

    def __init__(self, model: PrefixCachedModel) -> None:
        self.model = model
        self.failed: BaseException | None = None
        """What ended the thread; None while it runs."""
        self.is_draining = False
        """Whether no further requests are taken; those under way go on."""
        self._streams: set[TokenStream] = set()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="kvtrie-engine", daemon=True)

    def start(self) -> None:
        """Begins to step."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Cancels what is under way and ends the thread; False where a step takes longer than `timeout_seconds`."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def state(self) -> Literal["ok", "failed", "stopping"]:
        """For those who ask whether requests are served."""
        if self.failed is not None:
            return "failed"
        return "stopping" if self.is_draining else "ok"

    def check(self) -> None:
        """Raises EngineFailed where the engine's thread has ended."""
        if self.failed is not None:
            raise EngineFailed("the engine has failed: see the server's log, and start the server again")

    async def begin(self, wanted: Wanted) -> TokenStream:
        """Queues a request.

        Raises:
            EngineFailed: the engine's thread has ended.
            InputError: what `PrefixCachedModel.submit` refuses.
            PoolExhausted: the prompt can never fit the pool.
        """
        self.check()
        completion = await run_sync(
            lambda: self.model.submit(
                wanted.tokens,
                tenant=wanted.tenant,
                max_new_tokens=wanted.max_new_tokens,
                sampling=wanted.sampling,
                eos=wanted.eos,
                cache_salt=wanted.cache_salt,
            )
        )
        stream = TokenStream(completion, self)
        with self._wake:
            self._streams.add(stream)
            self._wake.notify()
        return stream

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while self.model.engine.idle and not self._streams and not self._is_stopping:
                        self._wake.wait()
                    if self._is_stopping:
                        return
                self.model.engine.step()
                self._tell()
        except BaseException as error:
            _LOG.exception("the engine's thread has ended")
            self.failed = error
            self._tell()

    def _tell(self) -> None:
        with self._wake:
            streams = list(self._streams)
            self._streams = {stream for stream in streams if not stream.completion.done}
        for stream in streams:
            stream.moved()
