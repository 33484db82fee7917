"""An HTTP client on an event loop in a thread of its own, for one sidecar."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from kvtrie.store.breaker import CircuitBreaker

T = TypeVar("T")

_CLOSE_SECONDS = 1.0


class HttpLoop:
    """One process's loop, thread, client and breaker. They begin with the first work. Thread-safe.

    Args:
        make_client: makes the client; called once, if at all.
        parents: that of the process that this one was forked from. Its event loop is kept, and neither used nor
            closed: the selector is the parent's too, and would forget the parent's sockets. Its connections are
            dropped, which closes only this process's descriptors.
    """

    def __init__(
        self, make_client: Callable[[], httpx.AsyncClient], breaker: CircuitBreaker, parents: HttpLoop | None
    ) -> None:
        self.breaker = breaker
        self.is_down = threading.Event()
        """Set after a failure, until the sidecar has answered again."""
        self.is_closed: bool = parents is not None and parents.is_closed
        self._make_client = make_client
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._parents_loops: list[asyncio.AbstractEventLoop] = [] if parents is None else parents.loops()

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """Every event loop here, those of forked-from processes included. Takes no lock: a child asks for it."""
        running = self._running
        return self._parents_loops if running is None else [*self._parents_loops, running.loop]

    @property
    def http(self) -> httpx.AsyncClient:
        """The client; for work that `submit` runs."""
        assert self._running is not None
        return self._running.http

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs `work` on the loop.

        Raises:
            RuntimeError: closed; `work` has not begun.
        """
        with self._lock:
            if self.is_closed:
                raise RuntimeError("closed")
            if self._running is None:
                self._running = _Running(self._make_client())
            return asyncio.run_coroutine_threadsafe(work, self._running.loop)

    def close(self) -> None:
        """Cancels what is under way and ends the thread. May be called twice."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
        if self._running is not None:
            self._running.close()


class _Running:
    """The HTTP client and its event loop in a thread, once a call has started them."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="kvtrie-sidecar", daemon=True)
        self._thread.start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self.loop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()

    async def _shut(self) -> None:
        try:
            mine = asyncio.current_task()
            others = [task for task in asyncio.all_tasks() if task is not mine]
            for task in others:
                task.cancel()
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), _CLOSE_SECONDS / 2)
            await asyncio.wait_for(self.http.aclose(), _CLOSE_SECONDS / 4)
        finally:
            self.loop.stop()
