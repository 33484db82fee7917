"""Runs against a real server: what is sent, when, and what is measured of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from kvtrie.api.load import outcome
from kvtrie.api.load.arrivals import constant, poisson
from kvtrie.api.load.outcome import LoadRun
from kvtrie.api.load.plan import LoadPlan, RequestForm
from kvtrie.api.load.prompt import LoadPrompt, Message
from kvtrie.api.load.run_load import ClientLimits, LoadState, run_load
from kvtrie.api.load.target import TargetUnavailable, only_model, parse_target
from kvtrie.prefix_tree.errors import InputError
from tests.api.load.openai_server import (
    DONE,
    Exchange,
    OpenAiServer,
    Script,
    chat_piece,
    event,
    openai_server,
    plain_answer,
    text_piece,
    usage_piece,
)

CHAT = RequestForm("chat", 3)


def asked(count: int, tenants: int = 1) -> list[LoadPrompt]:
    return [LoadPrompt(n % tenants, (Message("user", f"question {n}"),)) for n in range(count)]


def loop(count: int, concurrency: int = 1, form: RequestForm = CHAT, tenants: int = 1) -> LoadPlan:
    return LoadPlan(asked(count, tenants), form, concurrency=concurrency)


def run(server: OpenAiServer, plan: LoadPlan, keys: Sequence[str] = (), **limits: Any) -> LoadRun:
    target = parse_target(server.url, keys, tenants=max(len(keys), 1))
    return asyncio.run(run_load(plan, target, "served", ClientLimits(**limits)))


def run_script(script: Script, plan: LoadPlan, **limits: Any) -> tuple[LoadRun, OpenAiServer]:
    with openai_server(script) as server:
        return run(server, plan, **limits), server


def test_times_are_between_the_server_s_own() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece(b": hello\n\n")
        await exchange.piece(
            event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        )
        for text in "abcd":
            await asyncio.sleep(0.01)
            await exchange.piece(chat_piece(text))
        await exchange.piece(chat_piece(None, "stop"))
        await exchange.piece(usage_piece(50, 4, 20) + DONE)
        await exchange.end()

    found, server = run_script(script, loop(4))
    starts = []
    for one, exchange, after in zip(found.outcomes, server.exchanges, [*server.exchanges[1:], None]):
        assert one.failure is None and one.finish_reason == "stop"
        assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (50, 20, 4)
        # Both clocks are the machine's: their difference is the run's start, the same for all that was measured.
        assert len(one.text_times) == 4
        pairs = zip([*one.text_times, one.ended], exchange.sent[2:6] + exchange.sent[-1:])
        starts.append((max(sent - got for got, sent in pairs), exchange.received - one.sent))
        if after is not None:
            starts.append((exchange.sent[-1] - one.ended, after.received - one.ended))
    # What the server sent before it was received, and what this client sent before the server received it.
    least, most = max(low for low, _ in starts), min(high for _, high in starts)
    assert least <= most


def test_requests_are_what_the_plan_has() -> None:
    form = RequestForm(
        "chat", 7, ignore_eos=True, tenant_field="cache_salt", extra_body={"top_k": 5, "stream_options": None}
    )
    with openai_server() as server:
        found = run(server, loop(4, form=form, tenants=2), keys=("key-a", "key-b"))
    assert [one.failure for one in found.outcomes] == [None] * 4
    for number, exchange in enumerate(server.exchanges):
        assert exchange.path == "/v1/chat/completions"
        assert exchange.headers["authorization"] == f"Bearer key-{'ab'[number % 2]}"
        assert exchange.headers["accept-encoding"] == "identity"
        assert exchange.body == {
            "model": "served",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "max_tokens": 7,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "cache_salt": f"tenant-{number % 2}",
            "top_k": 5,
        }


def test_token_ids_and_texts_as_completions() -> None:
    prompts = [LoadPrompt(0, tokens=(5, 6, 7)), LoadPrompt(0, (Message("system", "s"), Message("user", "u")))]
    plan = LoadPlan(prompts, RequestForm("completions", 3), concurrency=1)
    found, server = run_script(plain_answer, plan)
    assert [exchange.body["prompt"] for exchange in server.exchanges] == [
        [5, 6, 7],
        "System: s\n\nUser: u\n\nAssistant:",
    ]
    assert {exchange.path for exchange in server.exchanges} == {"/v1/completions"}
    assert [len(one.text_times) for one in found.outcomes] == [3, 3]


def test_two_servers_get_the_same_requests_at_the_same_offsets() -> None:
    def plan() -> LoadPlan:
        return LoadPlan(asked(30, 3), CHAT, offsets=poisson(200.0, 30, 9))

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await plain_answer(exchange)

    first, one = run_script(plain_answer, plan())
    second, other = run_script(slow, plan())
    assert [outcome.due for outcome in first.outcomes] == list(plan().offsets or [])
    assert [outcome.due for outcome in second.outcomes] == list(plan().offsets or [])
    assert sorted(e.content for e in one.exchanges) == sorted(e.content for e in other.exchanges)
    assert plan().lines() == plan().lines() and plan().digest() == plan().digest()


def test_an_open_loop_does_not_wait_for_answers() -> None:
    everyone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 19:
            everyone.set()
        await everyone.wait()
        await plain_answer(exchange)

    # Nobody is answered before all have arrived: a client that waits would time out.
    found, server = run_script(
        script, LoadPlan(asked(20), CHAT, offsets=constant(500.0, 20)), timeout_seconds=30
    )
    assert [one.failure for one in found.outcomes] == [None] * 20
    assert server.most_running == 20


def test_a_closed_loop_keeps_its_concurrency() -> None:
    all_four = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 3:
            all_four.set()
        await all_four.wait()
        await plain_answer(exchange)

    found, server = run_script(script, loop(16, concurrency=4), timeout_seconds=30)
    assert [one.failure for one in found.outcomes] == [None] * 16
    assert server.most_running == 4
    assert all(one.due == one.sent for one in found.outcomes)


def test_a_closed_loop_sends_a_turn_after_the_one_before_it_was_answered() -> None:
    others = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        # The first chat's first turn is answered when the other chats have ended.
        if len(exchange.server.exchanges) == 9:
            others.set()
        if exchange.body["messages"][0]["content"] == "0 0":
            await others.wait()
        await plain_answer(exchange)

    prompts = [
        LoadPrompt(0, (Message("user", f"{chat} {turn}"),), chat=chat)
        for turn in range(4)
        for chat in range(3)
    ]
    found, server = run_script(script, LoadPlan(prompts, CHAT, concurrency=3), timeout_seconds=30)
    assert [one.failure for one in found.outcomes] == [None] * 12
    for chat in range(3):
        turns = [
            exchange
            for exchange in server.exchanges
            if exchange.body["messages"][0]["content"][0] == str(chat)
        ]
        assert [turn.body["messages"][0]["content"][2] for turn in turns] == list("0123")
        assert all(before.sent[-1] <= after.received for before, after in pairwise(turns))
    assert len(found.outcomes) == 12


def test_latency_counts_from_when_a_request_was_due() -> None:
    all_were_due = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await all_were_due.wait()
        await plain_answer(exchange)

    offsets = constant(1000.0, 6)
    with openai_server(script) as server:

        def note(state: LoadState) -> None:
            if state.begun == 6:
                server.set(all_were_due)

        plan = LoadPlan(asked(6), CHAT, offsets=offsets)
        limits = ClientLimits(max_connections=1)
        found = asyncio.run(run_load(plan, parse_target(server.url), "served", limits, note))
    assert server.most_connections == 1
    assert found.waited_for_connection == 5
    for one, before, offset in zip(found.outcomes[1:], found.outcomes, offsets[1:]):
        assert one.due == offset
        # It was sent after the one before it, which the first one held up; its latency says so.
        assert one.sent >= before.ended
        assert one.ttft == one.text_times[0] - offset > one.text_times[0] - one.sent


def test_connections_are_bounded_and_used_again() -> None:
    found, server = run_script(plain_answer, LoadPlan(asked(60), CHAT, offsets=[0.0] * 60), max_connections=5)
    assert [one.failure for one in found.outcomes] == [None] * 60
    assert server.most_connections <= 5 and server.most_running <= 5


async def nothing(exchange: Exchange) -> None:
    exchange.cut()


async def half_an_answer(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a"))
    exchange.cut()


async def no_done(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a") + chat_piece("b", "stop"))
    await exchange.end()


async def half_an_event(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a") + b'data: {"choi')
    await exchange.end()


async def bad_json(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a") + b"data: {oops\n\n")
    await exchange.end()


async def bad_choices(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(event({"choices": "none"}))
    await exchange.end()


async def bad_text(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(b"data: \xff\xfe\n\n")
    await exchange.end()


async def error_event(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a"))
    await exchange.piece(event({"error": {"message": "out of memory", "code": 500}}))
    await exchange.end()


async def named_error_event(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(b'event: error\ndata: {"detail": "engine died"}\n\n')
    await exchange.end()


async def never(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.piece(chat_piece("a"))
    await asyncio.sleep(3600)


async def full(exchange: Exchange) -> None:
    await exchange.head(429, "application/json")
    await exchange.piece(json.dumps({"error": {"message": "queue is full"}}).encode())
    await exchange.end()


async def broken(exchange: Exchange) -> None:
    await exchange.head(500, "text/plain")
    await exchange.piece(b"Internal Server Error")
    await exchange.end()


async def no_http(exchange: Exchange) -> None:
    exchange.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await exchange.writer.drain()
    exchange.cut()


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (nothing, outcome.CUT, ""),
        (half_an_answer, outcome.CUT, ""),
        (no_done, outcome.CUT, "ended without [DONE]"),
        (half_an_event, outcome.CUT, "ended inside an event"),
        (bad_json, outcome.MALFORMED, "'{oops'"),
        (bad_choices, outcome.MALFORMED, "choices"),
        (bad_text, outcome.MALFORMED, "not UTF-8"),
        (error_event, outcome.ERROR_EVENT, "out of memory"),
        (named_error_event, outcome.ERROR_EVENT, "engine died"),
        (never, outcome.TIMED_OUT, "within 0.2 s"),
        (full, "HTTP 429", "queue is full"),
        (broken, "HTTP 500", "Internal Server Error"),
        (no_http, outcome.CUT, ""),
    ],
)
def test_every_failure_is_an_outcome(script: Script, kind: str, message: str) -> None:
    async def every_other(exchange: Exchange) -> None:
        await (script if exchange.number % 2 else plain_answer)(exchange)

    limit = 0.2 if script is never else 30.0
    found, _ = run_script(every_other, loop(4), timeout_seconds=limit)
    assert [one.failure for one in found.outcomes] == [None, kind, None, kind]
    assert message in found.outcomes[1].message and found.outcomes[1].message
    assert found.outcomes[0].completion_tokens == 3


def test_a_server_that_is_not_there() -> None:
    with openai_server() as server:
        url = server.url
    target = parse_target(url)
    found = asyncio.run(run_load(loop(2), target, "served"))
    assert [one.failure for one in found.outcomes] == [outcome.NO_CONNECTION] * 2
    with pytest.raises(TargetUnavailable, match="does not answer"):
        asyncio.run(only_model(target))


def test_answers_in_the_smallest_and_in_one_piece() -> None:
    async def script(exchange: Exchange) -> None:
        whole = b": x\r\n\r\n" + chat_piece("é") + chat_piece("b", "stop") + usage_piece(9, 2) + DONE
        await exchange.head()
        pieces = [whole] if exchange.number else [whole[at : at + 1] for at in range(len(whole))]
        for content in pieces:
            await exchange.piece(content)
        await exchange.end()

    bytewise, at_once = run_script(script, loop(2))[0].outcomes
    for one in (bytewise, at_once):
        assert (one.failure, one.finish_reason, one.prompt_tokens, one.completion_tokens) == (
            None,
            "stop",
            9,
            2,
        )
        assert one.cached_tokens is None
        assert len(one.text_times) == 2
    assert at_once.text_times[0] == at_once.text_times[1]


def test_a_server_without_a_tokenizer_and_chats_without_text() -> None:
    async def completions(exchange: Exchange) -> None:
        await exchange.head()
        for content in (text_piece(""), text_piece(""), text_piece("", "length"), usage_piece(3, 3), DONE):
            await exchange.piece(content)
        await exchange.end()

    async def chat(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece(
            event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        )
        await exchange.piece(chat_piece(None, "stop") + usage_piece(3, 1) + DONE)
        await exchange.end()

    form = RequestForm("completions", 3)
    assert len(run_script(completions, loop(1, form=form))[0].outcomes[0].text_times) == 3
    found, _ = run_script(chat, loop(1))
    assert len(found.outcomes[0].text_times) == 1
    # The role's piece is not the answer's.
    assert found.outcomes[0].text_times[0] == found.outcomes[0].ended


def test_a_body_that_stays_open_after_done_holds_up_nothing() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.piece(chat_piece("a", "stop") + DONE)
        if exchange.number == 0:
            await asyncio.sleep(3600)
        await exchange.end()

    found, _ = run_script(script, loop(2), timeout_seconds=30)
    assert [one.failure for one in found.outcomes] == [None, None]


def test_progress_tells_where_a_run_is() -> None:
    seen: list[tuple[int, int, int, int]] = []

    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)
        await (full if exchange.number == 1 else plain_answer)(exchange)

    def note(state: LoadState) -> None:
        seen.append((state.planned, state.begun, state.ended, state.failed))

    with openai_server(script) as server:
        asyncio.run(run_load(loop(4), parse_target(server.url), "served", progress=note))
    assert seen and seen == sorted(seen)
    assert all(planned == 4 and ended <= begun <= ended + 1 for planned, begun, ended, _ in seen)
    assert seen[-1][3] == 1


def test_models_and_addresses() -> None:
    with openai_server(models=("one",)) as server:
        for url in (server.url, server.url + "/v1", server.url + "/v1/"):
            assert asyncio.run(only_model(parse_target(url))) == "one"
    with (
        openai_server(models=("one", "two")) as server,
        pytest.raises(InputError, match="serves one, two: pass"),
    ):
        asyncio.run(only_model(parse_target(server.url)))
    with openai_server(models=()) as server, pytest.raises(TargetUnavailable, match="pass --model"):
        asyncio.run(only_model(parse_target(server.url)))
    assert parse_target("https://api.example.com/openai/v1").base_url == "https://api.example.com/openai"
    assert parse_target("unix:///run/k.sock").socket_path == "/run/k.sock"
    for url in ("ftp://x", "127.0.0.1:80", "http://", "http://h:0", "http://h:99999", "http://h/?a=b"):
        with pytest.raises(InputError):
            parse_target(url)
    with pytest.raises(InputError, match="one for each of the 3 tenants, not 2"):
        parse_target("http://h", ("a", "b"), 3)
    with pytest.raises(InputError, match="no HTTP header can carry"):
        parse_target("http://h", ("a b",))


def test_plans_that_cannot_work() -> None:
    for make in (
        lambda: LoadPlan([], CHAT, concurrency=1),
        lambda: LoadPlan(asked(1), CHAT),
        lambda: LoadPlan(asked(1), CHAT, offsets=[0.0], concurrency=1),
        lambda: LoadPlan(asked(2), CHAT, offsets=[0.0]),
        lambda: LoadPlan(asked(1), CHAT, concurrency=0),
        lambda: LoadPlan([LoadPrompt(0, tokens=(3,))], CHAT, concurrency=1),
        lambda: RequestForm("embeddings", 1),
        lambda: RequestForm("chat", 0),
        lambda: RequestForm("chat", 1, extra_body={"stream": False}),
        lambda: RequestForm("chat", 1, extra_body={"stream": None}),
        lambda: ClientLimits(max_connections=0),
        lambda: ClientLimits(timeout_seconds=0),
    ):
        with pytest.raises(InputError):
            make()
