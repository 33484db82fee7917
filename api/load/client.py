"""Sends one request, and times its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from kvtrie.api.load import outcome
from kvtrie.api.load.answer import ErrorEvent, StreamedAnswer, error_message
from kvtrie.api.load.outcome import Outcome
from kvtrie.api.load.plan import ENDPOINTS, RequestForm
from kvtrie.api.load.prompt import LoadPrompt
from kvtrie.api.load.sse import EventParser, MalformedStream
from kvtrie.api.load.target import Target

_ERROR_BYTES = 1 << 16
"""Of an error's body that is read."""
_AFTER_DONE_SECONDS = 1.0
"""How long the end of a body may take after `[DONE]`. A body that was not read to its end costs the connection."""


class Failed(Exception):
    """A request failed: a kind of `outcome`, and what was said about it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LoadClient:
    """Sends requests of one form to one server, over a bounded number of connections.

    Args:
        http: `target.client(max_connections)`.
        clock: seconds since the run's start.
        timeout_seconds: from sending to `[DONE]`.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        target: Target,
        form: RequestForm,
        model: str,
        *,
        clock: Callable[[], float],
        max_connections: int,
        timeout_seconds: float,
    ) -> None:
        self.waited_for_connection = 0
        """Requests that were due while all connections were in use."""
        self._http, self._target, self._form, self._model = http, target, form, model
        self._now, self._timeout_seconds = clock, timeout_seconds
        self._connections = asyncio.Semaphore(max_connections)

    def content(self, prompt: LoadPrompt) -> bytes:
        """The body that `send` takes; made before a request is due, so as not to delay it."""
        return self._form.content(prompt, self._model)

    async def send(self, index: int, prompt: LoadPrompt, content: bytes, due: float | None = None) -> Outcome:
        """Sends one request and reads its answer. A failure is an outcome too.

        Args:
            due: seconds from the start; None for now.
        """
        answer = StreamedAnswer()
        kind, message = None, ""
        if self._connections.locked():
            self.waited_for_connection += 1
        async with self._connections:
            sent = self._now()
            try:
                ended = await asyncio.wait_for(self._exchange(prompt, content, answer), self._timeout_seconds)
            except asyncio.TimeoutError:
                kind, message = outcome.TIMED_OUT, f"no whole answer within {self._timeout_seconds:g} s"
                ended = self._now()
            except Failed as failure:
                kind, message, ended = failure.kind, str(failure), self._now()
        return Outcome(
            index,
            prompt.tenant,
            sent if due is None else due,
            sent,
            ended,
            answer.text_times,
            kind,
            message,
            answer.finish_reason,
            answer.prompt_tokens,
            answer.cached_tokens,
            answer.completion_tokens,
        )

    async def _exchange(self, prompt: LoadPrompt, content: bytes, answer: StreamedAnswer) -> float:
        """When `[DONE]` arrived."""
        request = self._http.build_request(
            "POST",
            ENDPOINTS[self._form.endpoint],
            content=content,
            headers=self._target.headers(prompt.tenant),
        )
        try:
            response = await self._http.send(request, stream=True)
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise Failed(outcome.NO_CONNECTION, _said(error)) from None
        except httpx.HTTPError as error:
            raise Failed(outcome.CUT, _said(error)) from None
        try:
            pieces = response.aiter_raw()
            if response.status_code != 200:
                raise Failed(f"{outcome.HTTP}{response.status_code}", await _error_of(pieces))
            ended = await self._read(pieces, answer)
            # The body ends after `[DONE]`; a server that keeps it open does not hold up this client.
            with contextlib.suppress(asyncio.TimeoutError, httpx.HTTPError):
                await asyncio.wait_for(_drained(pieces), _AFTER_DONE_SECONDS)
            return ended
        except MalformedStream as error:
            raise Failed(outcome.MALFORMED, str(error)) from None
        except ErrorEvent as error:
            raise Failed(outcome.ERROR_EVENT, str(error)) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Failed(outcome.CUT, _said(error)) from None
        finally:
            await response.aclose()

    async def _read(self, pieces: AsyncIterator[bytes], answer: StreamedAnswer) -> float:
        stream = EventParser()
        async for piece in pieces:
            now = self._now()
            for event in stream.feed(piece):
                answer.take(event, now)
                if answer.is_done:
                    return now
        where = "inside an event" if stream.is_inside_an_event else "without [DONE]"
        raise Failed(outcome.CUT, f"the stream ended {where}")


async def _drained(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


async def _error_of(pieces: AsyncIterator[bytes]) -> str:
    """The message in an error's body, or the body's beginning."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > _ERROR_BYTES:
            break
    said: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(body)
    return error_message(said) or body[:200].decode("utf-8", "replace")


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
