"""The parts of `bench.peers.vllm_serve` that need no vLLM: commands, waiting, ending, comparing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.peers import vllm_serve
from bench.peers.served import NotServing, Served, free_port
from bench.peers.vllm_serve import Server, drive, kvtrie_server, load_command, ratios, vllm_server
from kvtrie.api.cli import bench_serve

SERVER = """
import http.server, json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
open(sys.argv[2], "w").write(str(child.pid))
TEXT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}\\n\\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 1}}\\n\\ndata: [DONE]\\n\\n'
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(json.dumps({"data": [{"id": "bench"}]}).encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(TEXT + USAGE)
    def reply(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def exists(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def small_server(port: int, child: Path) -> Server:
    return Server("small", (sys.executable, "-c", SERVER, str(port), str(child)), {})


def test_a_server_is_waited_for_and_ended_with_its_children(tmp_path: Path) -> None:
    port, child = free_port(), tmp_path / "child"
    server = small_server(port, child)
    with Served(server.command, {}, tmp_path / "log", grace_seconds=5) as served:
        served.wait_until_it_answers(f"http://127.0.0.1:{port}/v1/models", 60)
        pids = [served.pid, int(child.read_text())]
        assert all(map(exists, pids))
        assert os.getpgid(pids[1]) == served.pid != os.getpgid(0)
    assert not any(map(exists, pids))
    served.end()


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(3600)"
    )
    log = tmp_path / "log"
    with Served([sys.executable, "-c", program], {}, log, grace_seconds=0.5) as served:
        while "up" not in log.read_text():
            assert exists(served.pid)
    assert not exists(served.pid)


def test_a_server_that_ends_or_never_answers_says_why(tmp_path: Path) -> None:
    log, url = tmp_path / "log", f"http://127.0.0.1:{free_port()}/"
    program = "import os; raise SystemExit('no such model ' + os.environ['OF'])"
    with (
        Served([sys.executable, "-c", program], {"OF": "mine"}, log) as served,
        pytest.raises(NotServing, match=r"ended with 1:\nno such model mine"),
    ):
        served.wait_until_it_answers(url, 60)
    with (
        Served([sys.executable, "-c", "import time; time.sleep(3600)"], {}, log) as served,
        pytest.raises(NotServing, match=r"did not answer within 0\.1 s"),
    ):
        served.wait_until_it_answers(url, 0.1)


def test_a_server_is_driven_and_its_figures_come_back(tmp_path: Path) -> None:
    port, child = free_port(), tmp_path / "child"
    further = ["--concurrency", "2", "--shared-tokens", "8", "--own-tokens", "4"]
    document = drive(small_server(port, child), port, load_command(port, 1, 6, 50, further), tmp_path)
    assert document["format"] == "kvtrie-load"
    assert (document["measures"]["requests"], document["measures"]["failed"]) == (6, 0)
    assert document["measures"]["prompt_tokens"] == 72
    assert not exists(int(child.read_text()))


def test_commands() -> None:
    vllm = vllm_server("v/bin/python", Path("/m"), 81, memory_gib=6, eager=True)
    assert vllm.command[:3] == ("v/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    for wanted in (
        ("--model", "/m"),
        ("--served-model-name", "bench"),
        ("--port", "81"),
        ("--dtype", "float32"),
    ):
        place = vllm.command.index(wanted[0])
        assert vllm.command[place : place + 2] == wanted
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager"} <= set(
        vllm.command
    )
    assert vllm.environment["VLLM_CPU_KVCACHE_SPACE"] == "6"
    assert "--enforce-eager" not in vllm_server("p", Path("/m"), 81, memory_gib=6, eager=False).command
    ours = kvtrie_server(Path("/m"), 82, memory_gib=6).command
    assert ours[ours.index("serve") :][:3] == ("serve", "--model", "/m")
    assert "http://127.0.0.1:82" in ours and "6GiB" in ours


def test_both_servers_get_one_plan() -> None:
    import argparse

    def plan(port: int) -> str:
        parser = argparse.ArgumentParser()
        bench_serve.add_arguments(parser)
        command = load_command(port, 3, 5, 32000, ["--rate", "2", "--shared-tokens", "16"])
        return bench_serve.load_plan(parser.parse_args(command[command.index("serve") + 1 :])).digest()

    assert plan(81) == plan(82)


def test_ratios_of_one_load_only() -> None:
    def document(digest: str, ttft: float, rate: float) -> dict[str, object]:
        spreads = {"ttft": {"p50": ttft, "p99": 2 * ttft}, "tpot": None, "itl": None, "end_to_end": None}
        rates = {"completed_rate": rate, "goodput": 0.0, "output_tokens_per_second": rate}
        return {"plan_sha256": digest, "measures": {**spreads, **rates}}

    assert ratios(document("a", 1.0, 3.0), document("a", 2.0, 1.5)) == {
        "ttft_p50": 0.5,
        "ttft_p99": 0.5,
        "completed_rate": 2.0,
        "output_tokens_per_second": 2.0,
    }
    with pytest.raises(ValueError, match="different loads"):
        ratios(document("a", 1.0, 1.0), document("b", 1.0, 1.0))


def test_without_vllm_it_is_skipped_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert vllm_serve.main(["--vllm-python", str(tmp_path / "none")]) == 0
    assert (
        capsys.readouterr().out
        == f"skipped vllm serve: {tmp_path}/none cannot be run: No such file or directory\n"
    )
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    assert vllm_serve.main(["--vllm-python", str(bare)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"skipped vllm serve: {bare} has no vllm") and out.count("\n") == 1
