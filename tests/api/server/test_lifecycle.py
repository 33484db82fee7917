"""Clients that leave or never end, signals, an engine that dies: nothing is left held, the exit code tells."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from typing import Any

import openai
import pytest

from tests.api.server.conftest import (
    NAME,
    Plain,
    ServeProcess,
    Start,
    connected,
    until,
)

USER = [{"role": "user", "content": "Say a great deal."}]
LONG: Any = {"model": NAME, "messages": USER, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}


def is_idle(server: ServeProcess) -> bool:
    """Whether nothing runs and nothing is held by a request."""
    names = ("kvtrie_num_requests_running", "kvtrie_num_requests_waiting", "kvtrie_pool_pending_bytes")
    return all(server.metric(name) == 0 for name in names)


def balances(server: ServeProcess) -> bool:
    """Whether used and free bytes are all of the pool."""
    used, free, capacity = (
        server.metric(f"kvtrie_pool_{kind}_bytes") for kind in ("used", "free", "capacity")
    )
    return used + free == capacity


def request_bytes(**body: Any) -> bytes:
    content = json.dumps({"model": NAME, "messages": USER, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class TestClientsThatLeave:
    def test_in_the_middle_of_a_stream(self, server: ServeProcess) -> None:
        with server.client() as client:
            stream = client.chat.completions.create(**LONG, stream=True)
            for _, _chunk in zip(range(3), stream):
                pass
            assert server.metric("kvtrie_num_requests_running") == 1
            stream.close()
        before = server.metric("kvtrie_generation_tokens_total")
        until(lambda: is_idle(server))
        assert balances(server)
        assert server.metric("kvtrie_request_success_total", label='"cancelled"') >= 1
        assert server.metric("kvtrie_generation_tokens_total") - before < 1900

    def test_while_the_whole_answer_is_computed(self, server: ServeProcess) -> None:
        with connected(server, request_bytes(max_tokens=1900, ignore_eos=True)):
            until(lambda: server.metric("kvtrie_num_requests_running") == 1)
        until(lambda: is_idle(server))
        assert balances(server)

    def test_with_many_choices(self, server: ServeProcess) -> None:
        with connected(server, request_bytes(max_tokens=1900, ignore_eos=True, n=8, stream=True)) as client:
            until(lambda: server.metric("kvtrie_num_requests_running") == 8)
            assert client.recv(1 << 10)
        until(lambda: is_idle(server))
        assert balances(server)

    def test_a_cut_body_holds_nothing(self, server: ServeProcess) -> None:
        with connected(server, request_bytes(max_tokens=5)[:-10]):
            until(lambda: server.metric("kvtrie_serve_receive_used_bytes") > 0)
        until(lambda: server.metric("kvtrie_serve_receive_used_bytes") == 0)


class TestCrowds:
    def test_idle_and_slow_connections_keep_nobody_out(self, start_server: Start) -> None:
        program = """
import sys
from kvtrie.api.server import server_config
from kvtrie.api.http.record_frames import Limits
server_config.default_limits.__code__ = (lambda: __import__(
    "kvtrie.api.http.record_frames", fromlist=["Limits"]).Limits(
    header_seconds=2.0, max_connections=300, max_unknown_per_address=200)).__code__
from kvtrie.api.cli import main
sys.exit(main(sys.argv[1:]))
"""
        server = start_server(program=program)
        crowd = []
        try:
            for number in range(1000):
                crowd.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
                # Heads that never end, byte by byte.
                crowd[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nX-" + str(number).encode())
            reply = server.client().chat.completions.create(model=NAME, messages=USER, max_tokens=2)
            assert reply.choices
            assert server.metric("kvtrie_serve_connections") <= 300 + 16
            until(lambda: server.metric("kvtrie_serve_connections") < 5)
            assert server.metric("kvtrie_serve_connections_closed_total") >= 990
        finally:
            for connection in crowd:
                connection.close()

    def test_a_reader_that_reads_nothing_is_let_go(self, start_server: Start) -> None:
        program = """
import sys, dataclasses
from kvtrie.api.server import server_config
server_config.ServerConfig.__init__.__kwdefaults__
from kvtrie.api.server import run_server
real = run_server.serve
def serve(model, tenants, addresses, config, announce):
    return real(model, tenants, addresses, dataclasses.replace(config, stall_seconds=1.0), announce)
run_server.serve = serve
from kvtrie.api.cli import main
sys.exit(main(sys.argv[1:]))
"""
        server = start_server(program=program)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        with client:
            # Each token of each choice is an event of some 200 bytes: megabytes, of which nothing is read.
            client.sendall(request_bytes(max_tokens=1900, ignore_eos=True, n=16, stream=True))
            until(lambda: server.metric("kvtrie_num_requests_running") > 0)
            until(lambda: is_idle(server))
            assert server.metric("kvtrie_request_success_total", label='"cancelled"') > 0
        assert balances(server)


class TestSignals:
    def test_sigterm_under_load_lets_answers_end(self, start_server: Start, plain: Plain) -> None:
        server = start_server("--drain-seconds", "60")
        prompt = plain.prompt(USER)
        wanted = plain.text(plain.continued(prompt, 200))
        said: list[str | None] = []

        def ask() -> None:
            with server.client() as client:
                arguments: Any = {"model": NAME, "messages": USER, "max_tokens": 200, "temperature": 0}
                if len(said) % 2:
                    reply = client.chat.completions.create(**arguments)
                    said.append(reply.choices[0].message.content)
                    return
                chunks = client.chat.completions.create(**arguments, stream=True)
                said.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: server.metric("kvtrie_num_requests_running") == 8)
        server.signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.ended() == 0
        assert said == [wanted] * 8
        assert not server.socket_path.exists()
        with pytest.raises(ConnectionRefusedError):
            connected(server)

    def test_what_takes_longer_than_the_deadline_is_cancelled(self, start_server: Start) -> None:
        server = start_server("--drain-seconds", "1")
        client = connected(server, request_bytes(max_tokens=1900, ignore_eos=True, n=32))
        with client:
            until(lambda: server.metric("kvtrie_num_requests_running") == 32)
            server.signal(signal.SIGTERM)
            assert server.ended() == 0, server.said()
            assert not server.socket_path.exists()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_it_at_once(self, start_server: Start, number: signal.Signals) -> None:
        server = start_server("--drain-seconds", "600")
        with connected(server, request_bytes(max_tokens=1900, ignore_eos=True, n=32)):
            until(lambda: server.metric("kvtrie_num_requests_running") == 32)
            server.signal(number)
            # The first one has arrived when nobody is let in any more.
            until(lambda: refuses(server))
            began = time.monotonic()
            server.signal(number)
            assert server.ended() == 128 + number
            # Not an assertion on speed: the deadline is 600 s.
            assert time.monotonic() - began < 300
        assert not server.socket_path.exists()


def refuses(server: ServeProcess) -> bool:
    try:
        connected(server).close()
    except ConnectionRefusedError:
        return True
    return False


DIES = """
import sys
from pathlib import Path
from kvtrie.api.engine.engine import Engine
real = Engine.step
def step(self):
    if Path(sys.argv[-1]).exists():
        raise SystemError("the engine is broken")
    real(self)
Engine.step = step
from kvtrie.api.cli import main
sys.exit(main(sys.argv[1:-1]))
"""


class TestEngineThatDies:
    def test_requests_get_503_and_the_process_ends_with_1(self, start_server: Start, tmp_path: Any) -> None:
        fault = tmp_path / "fault"
        server = start_server("--failed-seconds", "6", str(fault), program=DIES)
        with server.http() as http, server.client() as client:
            assert http.get("/readyz").json() == {"ready": True, "engine": "ok"}
            stream = client.chat.completions.create(**LONG, stream=True)
            next(stream)
            fault.touch()
            # A stream that has begun ends with an error.
            with pytest.raises(openai.APIError, match="engine has failed"):
                list(stream)
            reply = http.get("/readyz")
            assert (reply.status_code, reply.json()) == (503, {"ready": False, "engine": "failed"})
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model=NAME, messages=USER)
            assert (caught.value.status_code, caught.value.code) == (503, "engine_stopped")
            assert http.post("/v1/cache/pins", json={"tokens": [5] * 16}).status_code == 503
            assert http.get("/livez").status_code == 200
        assert server.ended() == 1
        assert "the engine is broken" in server.said()
        assert not server.socket_path.exists()
