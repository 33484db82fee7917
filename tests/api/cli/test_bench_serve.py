"""`kvtrie bench serve` against a server that answers in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.api.cli.conftest import Ran
from tests.api.load.openai_server import Exchange, openai_server, plain_answer

Call = Callable[..., Ran]
PROGRAM = "import sys; from kvtrie.api.cli import main; sys.exit(main())"
SMALL = ("--shared-tokens", "8", "--own-tokens", "2")


@pytest.fixture
def serve(kvtrie: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`kvtrie bench serve` with a few small requests, all due at once."""

    def call(url: str, *arguments: str) -> Ran:
        return kvtrie("bench", "serve", "--url", url, *SMALL, *arguments)

    return call


def test_the_table(serve: Call) -> None:
    with openai_server() as server:
        ran = serve(server.url, "--rate", "200", "--requests", "12", "--tenants", "2", "--ignore-eos")
    assert ran.code == 0
    assert "12 requests in" in ran.out and "0 failed" in ran.out
    assert "prompt tokens 1,200, cached 720 (60.0%)" in ran.out
    for head in ("TTFT", "TPOT", "ITL", "end to end", "client's lag", "tenant-0", "tenant-1"):
        assert f"\n{head}" in ran.out
    assert {exchange.body["model"] for exchange in server.exchanges} == {"served"}
    assert all(exchange.body["ignore_eos"] for exchange in server.exchanges)


def test_the_documents(serve: Call, tmp_path: Path) -> None:
    output, plot = tmp_path / "run.json", tmp_path / "run.svg"
    with openai_server() as server:
        ran = serve(
            server.url,
            *("--concurrency", "2", "--requests", "10", "--warm-up", "4", "--format", "json"),
            *("--output", str(output), "--plot", str(plot), "--api-key", "secret-key", "--max-tokens", "5"),
        )
    assert ran.code == 0
    document = ran.document
    assert (document["format"], document["version"]) == ("kvtrie-load", 1)
    assert document["measures"]["requests"] == 6
    assert document["measures"]["cached_share"] == 0.6
    assert document["settings"]["model"] == "served" and document["settings"]["max_tokens"] == 5
    assert document["provenance"]["machine"] and document["provenance"]["versions"]["kvtrie"]
    assert {exchange.headers["authorization"] for exchange in server.exchanges} == {"Bearer secret-key"}
    written = json.loads(output.read_text())
    rows = written.pop("requests")
    assert written == document
    assert [row["index"] for row in rows] == list(range(10))
    assert all(len(row["text_times"]) == 3 and row["tenant"] == "tenant-0" for row in rows)
    assert plot.read_text().startswith("<?xml")
    assert "secret-key" not in output.read_text() + ran.out


def test_plots_are_pictures_and_the_same_for_the_same_run(tmp_path: Path) -> None:
    from kvtrie.api.load.measures import Slo
    from kvtrie.api.load.outcome import Outcome
    from kvtrie.api.load.plot import plot_load

    outcomes = [
        Outcome(n, 0, n, n, n + 2.0, [n + 0.5, n + 1.0], prompt_tokens=9, cached_tokens=n) for n in range(9)
    ]
    outcomes.append(Outcome(9, 0, 9.0, 9.0, 9.5, failure="cut"))
    for name in ("a.svg", "b.svg", "a.png"):
        plot_load(outcomes, Slo(), "title", tmp_path / name)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    # A server that answers nothing.
    plot_load(outcomes[9:], Slo(), "title", tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")


def test_the_same_seed_prints_the_same_requests(serve: Call) -> None:
    def printed(*arguments: str) -> str:
        ran = serve("http://127.0.0.1:1", "--requests", "20", "--print-requests", *arguments)
        assert ran.code == 0
        return ran.out

    assert printed("--seed", "3") == printed("--seed", "3", "--api-key", "x", "--model", "y")
    assert printed("--seed", "3") != printed("--seed", "4")
    offsets = [
        json.loads(line)["offset"] for line in printed("--arrivals", "constant", "--rate", "5").splitlines()
    ]
    assert offsets == [n / 5 for n in range(20)]


def test_a_trace_s_times(serve: Call, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens\n10,5\n10.5,5\n12,5\n")
    ran = serve(
        "http://x", "--requests", "3", "--arrivals", "trace", "--trace", str(trace), "--print-requests"
    )
    assert [json.loads(line)["offset"] for line in ran.out.splitlines()] == [0.0, 0.5, 2.0]


def test_texts_as_token_ids(serve: Call, tmp_path: Path, tokenizer_file: str) -> None:
    (tmp_path / "gsm8k_fewshot16_train.jsonl.gz").write_text('{"question": "w1", "answer": "w2"}\n')
    (tmp_path / "gsm8k_test_dev.jsonl.gz").write_text('{"question": "w3 w4", "answer": "w5"}\n')
    few_shot = ("--workload", "few-shot", "--data", str(tmp_path), "--requests", "1", "--print-requests")
    ran = serve("http://x", *few_shot, "--token-ids", "--tokenizer", tokenizer_file)
    unknown, start = 98, 99
    # "Question: w1 Answer: w2 Question: w3 w4 Answer:" after the token that begins a prompt.
    assert json.loads(ran.out)["body"]["prompt"] == [start, unknown, 1, unknown, 2, unknown, 3, 4, unknown]
    chat = serve("http://x", *few_shot)
    text = "Question: w1\nAnswer: w2\n\nQuestion: w3 w4\nAnswer:"
    assert json.loads(chat.out)["body"]["messages"] == [{"role": "user", "content": text}]


def test_failed_requests_end_with_one(serve: Call) -> None:
    async def full(exchange: Exchange) -> None:
        if exchange.number % 2:
            await plain_answer(exchange)
            return
        await exchange.head(429, "application/json")
        await exchange.piece(b'{"error": {"message": "full\\u001b[31m"}}')
        await exchange.end()

    with openai_server(full) as server:
        ran = serve(server.url, "--concurrency", "1", "--requests", "4")
    assert ran.code == 1
    assert "2 x HTTP 429: full\\x1b[31m" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "the rate must be"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--warm-up", "100"], "--warm-up must be from 0 to 99"),
        (["--concurrency", "0"], "--concurrency must be at least 1"),
        (["--concurrency", "2", "--rate", "3"], "closed loop"),
        (["--trace", "x.csv"], "--arrivals trace"),
        (["--arrivals", "trace"], "needs --trace"),
        (["--workload", "chats"], "--data"),
        (["--endpoint", "chat"], "/v1/completions only"),
        (["--token-ids", "--workload", "few-shot", "--data", "DATA"], "needs --tokenizer"),
        (["--extra-body", "[1]"], "must be a JSON object"),
        (["--extra-body", "{"], "must be a JSON object"),
        (["--slo-ttft-ms", "0"], "above 0"),
        (["--max-connections", "0"], "--max-connections"),
        (["--timeout", "0"], "--timeout"),
        (["--plot", "x.pdf"], "must end in"),
        (["--plot", "/none/x.svg"], "no folder /none"),
        (["--output", "/none/x.json"], "no folder /none"),
        (["--api-key", "a", "--api-key", "b"], "one for each of the 1 tenants"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    serve: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "gsm8k_fewshot16_train.jsonl.gz").write_text('{"question": "w1", "answer": "w2"}\n')
    (tmp_path / "gsm8k_test_dev.jsonl.gz").write_text('{"question": "w3", "answer": "w5"}\n')
    with openai_server() as server:
        ran = serve(server.url, *(str(tmp_path) if one == "DATA" else one for one in arguments))
    assert ran.code == 2
    assert message in ran.err
    assert server.exchanges == []


def test_a_server_that_is_not_there(serve: Call) -> None:
    with openai_server() as server:
        url = server.url
    ran = serve(url)
    assert (ran.code, "does not answer" in ran.err) == (3, True)


def test_a_bar_is_shown_on_a_terminal_only() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.4)
        await plain_answer(exchange)

    def stderr_of(arguments: list[str]) -> tuple[str, str]:
        """What a terminal shows, and what a pipe gets."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", PROGRAM, *arguments]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
        os.close(theirs)
        shown = b""
        # Reading from a terminal whose other end is closed is an error on Linux.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        assert process.wait() == 0
        piped = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        return shown.decode(), piped.stderr.decode()

    with openai_server(slow) as server:
        arguments = ["bench", "serve", "--url", server.url, *SMALL, "--concurrency", "1", "--requests", "3"]
        terminal, pipe = stderr_of(arguments)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal)
    assert re.search("[0-2]/3", plain) and "1 running, 0 failed" in plain
    assert pipe == ""


def test_an_interrupt_ends_the_run_with_what_was_measured() -> None:
    seen = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if exchange.number == 5:
            seen.set()
            await asyncio.sleep(3600)
        await plain_answer(exchange)

    with openai_server(script) as server:
        arguments = ["bench", "serve", "--url", server.url, *SMALL, "--concurrency", "1"]
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.wait_for(seen)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "5 requests in" in out
    assert "the run was interrupted: 5 of 100 requests were answered" in out
