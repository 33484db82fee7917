"""A small HTTP server that answers in OpenAI's form, as a script for each request says, and notes what it does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclass
class Exchange:
    """One request and its answer. Times are of `time.monotonic`, which asyncio's loops have too."""

    number: int
    """From 0, in order of arrival."""
    path: str
    headers: dict[str, str]
    content: bytes
    received: float
    writer: asyncio.StreamWriter
    server: OpenAiServer
    sent: list[float] = field(default_factory=list)
    """When each piece was about to be written."""

    @property
    def body(self) -> dict[str, Any]:
        parsed = json.loads(self.content)
        assert isinstance(parsed, dict)
        return parsed

    async def head(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        self.writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        await self.writer.drain()

    async def piece(self, content: bytes) -> None:
        """One chunk of the body."""
        self.sent.append(asyncio.get_running_loop().time())
        self.writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def cut(self) -> None:
        """Closes the connection at once."""
        self.writer.transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


def chat_piece(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def text_piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def usage_piece(prompt: int, completion: int, cached: int | None = None) -> bytes:
    details = None if cached is None else {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return event({"choices": [], "usage": usage})


def event(said: object) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


async def plain_answer(exchange: Exchange) -> None:
    """Three pieces of text, usage, and [DONE]."""
    await exchange.head()
    if exchange.path == "/v1/chat/completions":
        await exchange.piece(
            event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        )
        pieces = [chat_piece("a"), chat_piece("b"), chat_piece("c", "length")]
    else:
        pieces = [text_piece("a"), text_piece("b"), text_piece("c", "length")]
    for content in [*pieces, usage_piece(100, 3, 60), DONE]:
        await exchange.piece(content)
    await exchange.end()


class OpenAiServer:
    """Runs in a thread of its own. `script` answers every POST."""

    def __init__(self, script: Script, models: tuple[str, ...] = ("served",)) -> None:
        self.exchanges: list[Exchange] = []
        self.running = 0
        self.most_running = 0
        self.most_connections = 0
        self._connections = 0
        self._script, self._models = script, models
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, event: asyncio.Event) -> None:
        """Sets an event that scripts wait for."""
        self._loop.call_soon_threadsafe(event.set)

    def wait_for(self, event: asyncio.Event) -> None:
        """Returns when a script has set the event."""
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(event.wait(), 60), self._loop).result()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        self.most_connections = max(self.most_connections, self._connections)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line = await reader.readline()
        if not line:
            return False
        received = asyncio.get_running_loop().time()
        method, path, _ = line.decode().split()
        headers = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            listed = json.dumps({"data": [{"id": name} for name in self._models]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(listed) + listed)
            await writer.drain()
            return True
        exchange = Exchange(len(self.exchanges), path, headers, content, received, writer, self)
        self.exchanges.append(exchange)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._script(exchange)
        finally:
            self.running -= 1
        return not writer.is_closing()


@contextmanager
def openai_server(
    script: Script = plain_answer, models: tuple[str, ...] = ("served",)
) -> Iterator[OpenAiServer]:
    server = OpenAiServer(script, models)
    try:
        yield server
    finally:
        server.close()
