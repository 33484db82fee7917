"""Real `kvtrie serve` processes over a tiny random model with a small real tokenizer, and that model itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers as hf

from tests.api.tokenizers_of_each_kind import byte_level

START_SECONDS = 120.0
PATIENCE_SECONDS = 60.0
CHUNK_TOKENS = 8
POSITIONS = 2048
NAME = "tiny"
TENANTS = """
[admin]
api_key = "admin-key"
[tenants.acme]
api_key = "acme-key"
[tenants.bolt]
api_key = "bolt-key"
"""
COMMAND = "import sys; from kvtrie.api.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Plain:
    """The served model without kvtrie."""

    directory: Path
    model: Any
    tokenizer: Any

    def prompt(self, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
        """Tokens of messages, by transformers alone."""
        return list(
            self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
            )
        )

    def continued(self, prompt: list[int], most: int) -> list[int]:
        """Greedy tokens that `model.generate` adds to a prompt."""
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
        return list(out[0, len(prompt) :].tolist())

    def text(self, tokens: list[int]) -> str:
        """Text of tokens without special ones. Byte-level: no token's text depends on those before it."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """A Llama of three layers, saved with its tokenizer and a chat template."""
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Freshly initialised weights are so small that attention hardly moves the logits.
            if parameter.ndim >= 2:
                parameter.mul_(6 if "emb" in name else 3)
    directory = tmp_path_factory.mktemp("models") / NAME
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Plain(directory, model, tokenizer)


class ServeProcess:
    """`kvtrie serve` in a process of its own, on a free port and on a Unix socket."""

    def __init__(self, model: Path, directory: Path, *options: str, program: str = COMMAND) -> None:
        self.socket_path = directory / "s.sock"
        self.log = directory / "log"
        argv = ["serve", "--model", str(model), "--memory", "64MiB", "--chunk-tokens", str(CHUNK_TOKENS)]
        argv += ["--listen", "http://127.0.0.1:0", "--listen", f"unix://{self.socket_path}", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *argv], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), True)
        line = self.process.stdout.readline()
        found = re.search(r"listening on (http://127\.0\.0\.1:(\d+))", line)
        assert found is not None, f"{line!r}: {self.said()}"
        self.url, self.port = found[1], int(found[2])

    def said(self) -> str:
        """What it wrote on stderr."""
        return self.log.read_text()

    def client(self, key: str = "any-key", **options: Any) -> openai.OpenAI:
        """The official client; no retries, so that each refusal is seen."""
        options = {"max_retries": 0, "timeout": PATIENCE_SECONDS, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def async_client(self, key: str = "any-key") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_SECONDS
        )

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False)

    def metric(self, name: str, key: str | None = None, label: str = "") -> float:
        """The sum of a metric over its labels; only of lines that hold `label`."""
        with self.http(key) as http:
            text = http.get("/metrics").text
        lines = [line for line in text.splitlines() if re.match(rf"{name}(?:{{|\s)", line) and label in line]
        return sum(float(line.split()[-1]) for line in lines)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., ServeProcess]


@pytest.fixture(scope="session")
def _started(plain: Plain) -> Iterator[Start]:
    started: list[ServeProcess] = []
    with tempfile.TemporaryDirectory(prefix="kvtrie-serve-") as root:

        def start(*options: str, program: str = COMMAND, model: Path = plain.directory) -> ServeProcess:
            directory = Path(root) / str(len(started))
            directory.mkdir()
            started.append(ServeProcess(model, directory, *options, program=program))
            return started[-1]

        yield start
        for server in started:
            server.kill()


@pytest.fixture
def start_server(_started: Start) -> Iterator[Start]:
    """Starts servers with further options; they end with the test."""
    mine: list[ServeProcess] = []

    def start(*options: str, **more: Any) -> ServeProcess:
        mine.append(_started(*options, **more))
        return mine[-1]

    yield start
    for server in mine:
        server.kill()


@pytest.fixture(scope="session")
def server(_started: Start) -> ServeProcess:
    """An open server, for all tests that leave it as it was."""
    return _started()


@pytest.fixture(scope="session")
def tenant_server(_started: Start, tmp_path_factory: pytest.TempPathFactory) -> ServeProcess:
    """A server with tenants acme and bolt, and an admin."""
    path = tmp_path_factory.mktemp("tenants") / "tenants.toml"
    path.write_text(TENANTS)
    return _started("--tenants", str(path))


def until(holds: Callable[[], bool]) -> None:
    """Waits for what a server is about to do."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def connected(server: ServeProcess, sent: bytes = b"") -> socket.socket:
    """A connection over which `sent` was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
    connection.sendall(sent)
    return connection
