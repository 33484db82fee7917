"""Times of a request by a clock that the stream itself moves: exact values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from kvtrie.api.load.client import LoadClient
from kvtrie.api.load.outcome import Outcome
from kvtrie.api.load.plan import RequestForm
from kvtrie.api.load.prompt import LoadPrompt, Message
from kvtrie.api.load.target import Target
from tests.api.load.openai_server import DONE, chat_piece, event, usage_piece

ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


class Stream(httpx.AsyncByteStream):
    """Pieces, each at its time."""

    def __init__(self, pieces: list[tuple[float, bytes]]) -> None:
        self.now = 0.0
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for now, piece in self._pieces:
            self.now = now
            yield piece


def outcome_of(pieces: list[tuple[float, bytes]], due: float) -> Outcome:
    stream = Stream(pieces)
    stream.now = due + 0.5

    async def send() -> Outcome:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=stream))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            client = LoadClient(
                http,
                Target("http://x"),
                RequestForm("chat", 8),
                "m",
                clock=lambda: stream.now,
                max_connections=1,
                timeout_seconds=60,
            )
            prompt = LoadPrompt(3, (Message("user", "u"),))
            return await client.send(7, prompt, client.content(prompt), due)

    return asyncio.run(send())


def test_each_time_is_that_of_its_piece() -> None:
    one = outcome_of(
        [
            (11.0, b": comment\n\n" + ROLE),
            (12.0, chat_piece("a")[:9]),
            (13.0, chat_piece("a")[9:]),
            (13.5, chat_piece("b") + chat_piece("c")),
            (15.0, chat_piece("d", "stop")),
            (15.25, usage_piece(40, 5, 32)),
            (15.5, DONE),
            (99.0, b": after the end\n\n"),
        ],
        due=10.0,
    )
    assert (one.index, one.tenant, one.due, one.sent) == (7, 3, 10.0, 10.5)
    # The comment, the role and half of an event are no text.
    assert list(one.text_times) == [13.0, 13.5, 13.5, 15.0]
    assert one.ttft == 3.0
    # Five tokens by the server's count: four after the first, in two seconds.
    assert (one.tokens, one.tpot) == (5, 0.5)
    assert one.ended == 15.5


def test_without_usage_pieces_are_tokens() -> None:
    one = outcome_of([(1.0, chat_piece("a")), (3.0, chat_piece("b")), (4.0, chat_piece("c") + DONE)], due=0.0)
    assert (one.tokens, one.tpot, one.prompt_tokens, one.cached_tokens) == (3, 1.5, None, None)


@pytest.mark.parametrize(
    "pieces", [[(1.0, chat_piece("a") + usage_piece(4, 1) + DONE)], [(1.0, ROLE + DONE)]]
)
def test_answers_that_have_no_time_per_token(pieces: list[tuple[float, bytes]]) -> None:
    assert outcome_of(pieces, due=0.0).tpot is None


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning", "refusal", "tool_calls"])
def test_whatever_a_chat_streams_counts(name: str) -> None:
    value = [{"index": 0, "function": {"arguments": "{"}}] if name == "tool_calls" else "x"
    piece = event({"choices": [{"index": 0, "delta": {name: value}}]})
    assert outcome_of([(1.0, ROLE), (2.0, piece), (3.0, DONE)], due=0.0).ttft == 2.0
