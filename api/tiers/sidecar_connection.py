"""HTTP calls to one sidecar: each has one deadline over all of it, behind a circuit breaker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from kvtrie.api.http.address import parse_address
from kvtrie.api.http.http_loop import HttpLoop
from kvtrie.api.http.record_frames import SCOPE_HEADER
from kvtrie.prefix_tree.errors import AccessDenied, InputError, StoreError, StoreUnavailable
from kvtrie.store.breaker import CircuitBreaker
from kvtrie.store.per_process import PerProcess

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 10.0
_LONGEST_ERROR = 4096
_NOTHING = bytes(32)
"""Body of a match without tokens: its reply shows that sidecar, key and scope work, at no cost."""


@dataclass(frozen=True, slots=True)
class SidecarRequest:
    """One HTTP request to a sidecar."""

    method: str
    path: str
    content: bytes = b""
    scope: str | None = None
    """Name of the shared scope it addresses; None for the tenant's own."""


def probe(scope: str | None) -> SidecarRequest:
    """The cheapest request that needs access to `scope`."""
    return SidecarRequest("POST", "/v1/match", _NOTHING, scope)


class SidecarConnection:
    """A connection to one sidecar. Safe to call from several threads, and after a fork: the child connects anew.

    Calls run on an event loop in a daemon thread, where the deadline cancels them whatever they wait for. httpx's
    own timeouts are per read, so a server that sends a byte now and then would delay a caller without end.

    After a failure every call raises at once. A background request, as often as the breaker allows it, finds out
    whether the sidecar answers again, so no later caller waits for a sidecar that hangs.

    Args:
        url: `http://host:port`, `https://host:port` or `unix:///path`.
        deadline_seconds: longest time of one call.

    Raises:
        InputError: the URL is malformed, or the deadline not above 0.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        deadline_seconds: float,
        *,
        retry_after_seconds: float = 0.5,
        longest_retry_seconds: float = 30.0,
    ) -> None:
        if not deadline_seconds > 0:
            raise InputError(f"deadline_seconds must be above 0, got {deadline_seconds}")
        address = parse_address(url)
        self.shown = url
        self._deadline_seconds = deadline_seconds
        headers = {"Accept-Encoding": "identity", "User-Agent": "kvtrie"}
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise InputError("api_key must be visible ASCII characters")
            headers["Authorization"] = f"Bearer {api_key}"

        def make_client() -> httpx.AsyncClient:
            # Records and keys must not be sent to the proxies that the environment names.
            return httpx.AsyncClient(
                base_url=address.base_url,
                headers=headers,
                transport=httpx.AsyncHTTPTransport(
                    uds=address.socket_path or None,
                    limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS),
                    trust_env=False,
                ),
                timeout=deadline_seconds,
                trust_env=False,
            )

        def make_loop(parents: HttpLoop | None) -> HttpLoop:
            breaker = CircuitBreaker(
                retry_after_seconds=retry_after_seconds, longest_seconds=longest_retry_seconds
            )
            return HttpLoop(make_client, breaker, parents)

        self._loops = PerProcess(make_loop)

    @property
    def is_down(self) -> bool:
        """Whether calls raise at once. May start a background request that finds out if the sidecar answers."""
        loop = self._loops.get()
        if loop.is_down.is_set():
            self._ask_again(loop)
        return loop.is_down.is_set() or loop.is_closed

    def ask(self, question: SidecarRequest, read: Callable[[httpx.Response], Awaitable[T]]) -> T:
        """Sends a request; returns what `read` makes of the reply.

        Raises:
            StoreUnavailable: no usable reply within the deadline, or the call before failed.
            StoreError: the sidecar refused the request: too large, malformed, or too many at once.
            AccessDenied: status 401 or 403.
        """
        loop = self._loops.get()
        if self.is_down:
            raise StoreUnavailable(f"sidecar {self.shown}: {'closed' if loop.is_closed else 'failed before'}")
        ticket = loop.breaker.enter(self._deadline_seconds)
        if ticket is None:
            raise StoreUnavailable(f"sidecar {self.shown}: failed before")
        try:
            reply = self._run(loop, self._exchange(loop, question, read))
        except (AccessDenied, StoreUnavailable) as error:
            # 403 for one scope is not an outage; 401 (the key was revoked) is treated like one.
            if not isinstance(error, AccessDenied) or question.scope is None:
                loop.breaker.failed(ticket)
                loop.is_down.set()
            raise
        except StoreError:
            loop.breaker.succeeded(ticket)
            raise
        loop.breaker.succeeded(ticket)
        return reply

    def close(self) -> None:
        """Cancels calls in progress and ends the thread. May be called twice."""
        self._loops.get().close()

    def _ask_again(self, loop: HttpLoop) -> None:
        ticket = None if loop.is_closed else loop.breaker.enter(self._deadline_seconds)
        if ticket is not None:
            try:
                self._submit(loop, self._probe(loop, ticket))
            # The loop was closed after `is_closed` was read.
            except StoreUnavailable:
                loop.breaker.failed(ticket)

    async def _probe(self, loop: HttpLoop, ticket: int) -> None:
        try:
            await self._exchange(loop, probe(None), _nothing)
        except (AccessDenied, StoreError):
            loop.breaker.failed(ticket)
        else:
            loop.breaker.succeeded(ticket)
            loop.is_down.clear()

    def _run(self, loop: HttpLoop, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the loop. The timeout here is only for a loop that is itself stuck."""
        future = self._submit(loop, work)
        try:
            return future.result(self._deadline_seconds * 1.25 + 0.25)
        except FutureTimeoutError:
            future.cancel()
            raise StoreUnavailable(f"sidecar {self.shown}: no answer in time") from None

    def _submit(self, loop: HttpLoop, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            return loop.submit(work)
        except RuntimeError:
            work.close()
            raise StoreUnavailable(f"sidecar {self.shown}: closed") from None

    async def _exchange(
        self, loop: HttpLoop, question: SidecarRequest, read: Callable[[httpx.Response], Awaitable[T]]
    ) -> T:
        try:
            return await asyncio.wait_for(self._send(loop.http, question, read), self._deadline_seconds)
        except (AccessDenied, StoreError):
            raise
        except asyncio.TimeoutError:
            raise StoreUnavailable(
                f"sidecar {self.shown}: no answer within {self._deadline_seconds:g} s"
            ) from None
        # A peer that is not a sidecar can make the parsers raise anything: all of it is an outage.
        except Exception as error:
            raise StoreUnavailable(f"sidecar {self.shown}: {type(error).__name__}: {error}") from error

    async def _send(
        self,
        http: httpx.AsyncClient,
        question: SidecarRequest,
        read: Callable[[httpx.Response], Awaitable[T]],
    ) -> T:
        headers = {} if question.scope is None else {SCOPE_HEADER: question.scope}
        async with http.stream(
            question.method, question.path, content=question.content, headers=headers
        ) as response:
            if response.status_code == 200 and "content-encoding" not in response.headers:
                return await read(response)
            said = await _error(response)
        status = response.status_code
        if status == 401:
            raise AccessDenied(f"sidecar {self.shown}: {said}; pass the api_key that its tenants file has")
        if status == 403:
            raise AccessDenied(f"sidecar {self.shown}: {said}")
        # 429 too concerns this one call: the next one may be accepted. It is not an outage.
        if status in (400, 413, 429):
            raise StoreError(f"sidecar {self.shown} refused: {said}")
        raise StoreUnavailable(f"sidecar {self.shown}: HTTP status {status}: {said}")


async def read_limited(response: httpx.Response, max_bytes: int) -> bytes:
    """The body of a reply.

    Raises:
        InputError: it is longer than `max_bytes`.
    """
    pieces, size = [], 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > max_bytes:
            raise InputError(f"reply of more than {max_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def _nothing(response: httpx.Response) -> None:
    await read_limited(response, _LONGEST_ERROR)


async def _error(response: httpx.Response) -> str:
    """The reason in an error reply, as one line."""
    try:
        document = json.loads(await read_limited(response, _LONGEST_ERROR))
        said = document["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "no reason given"
    return " ".join(str(said).split())[:200]
