"""A mistyped tokenizer or model: one clear sentence, and the hub is asked once."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.tokenizers_of_each_kind import byte_level


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has no repository, and counts what it is asked."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    server.status = 404  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def explain(tmp_path: Path, name: str, **environment: str) -> tuple[int, str]:
    """`kvtrie explain` with a tokenizer, in a process of its own: the hub's settings are read at import."""
    arguments = ["explain", "x", "--tokens", "1", "--tokenizer", name]
    call = f"import sys; from kvtrie.api.cli import main; sys.exit(main({arguments!r}))"
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    ran = subprocess.run(
        [sys.executable, "-c", call],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**bare, "HF_HOME": str(tmp_path / "hf"), **environment},
    )
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


def cached(tmp_path: Path, name: str) -> None:
    """A repository in the cache, as a download leaves it."""
    place = tmp_path / "hf" / "hub" / ("models--" + name.replace("/", "--"))
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    files = place / "snapshots" / ("0" * 40)
    byte_level().save_pretrained(files)
    (files / "config.json").write_text('{"model_type": "llama"}')


def test_offline_nobody_is_asked(tmp_path, hub):
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    code, error = explain(tmp_path, "tekkn", HF_HUB_OFFLINE="1", HF_ENDPOINT=endpoint)
    assert code == 2
    assert error == (
        "kvtrie explain: there is no tokenizer 'tekkn': no such folder, and not in Hugging Face's cache; "
        "HF_HUB_OFFLINE is set; did you mean tekken?\n"
    )
    assert hub.asked == []


def test_a_hub_that_has_none_is_asked_once(tmp_path, hub):
    code, error = explain(tmp_path, "no/such", HF_ENDPOINT=f"http://127.0.0.1:{hub.server_address[1]}")
    assert code == 2
    assert error.endswith(
        "'no/such': no such folder, and not in Hugging Face's cache; the hub has none that you may read\n"
    )
    # huggingface_hub may ask for other things, of its own accord.
    assert [path for path in hub.asked if "no/such" in path] == ["/api/models/no/such"]


def test_a_hub_that_is_not_there_is_not_tried_again(tmp_path):
    """It hangs up on everybody, and counts."""
    calls = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            nonlocal calls
            while True:
                try:
                    with listener.accept()[0] as connection:
                        calls += b"/tekkn" in connection.recv(4096)
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        code, error = explain(tmp_path, "tekkn", HF_ENDPOINT=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert code == 2
    assert error.endswith("the hub does not answer; did you mean tekken?\n")
    assert error.count("\n") == 1
    assert calls == 1


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_what_is_cached_is_used_without_the_hub(tmp_path, offline):
    cached(tmp_path, "acme/words")
    code, error = explain(tmp_path, "acme/words", **offline)
    # The tokenizer is there; what is missing is the snapshot.
    assert (code, error) == (2, "kvtrie explain: cannot read 'x': No such file or directory\n")
    code, error = explain(tmp_path, "acme/wordz", **offline)
    assert code == 2
    assert error.endswith("did you mean acme/words?\n")


@pytest.mark.parametrize(
    ("name", "close"),
    [("./tokeniser.json", "tokenizer.json"), ("models/lama", "models/llama"), ("/nowhere/at/all.json", None)],
)
def test_a_mistyped_path(tmp_path, name, close):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "models" / "llama").mkdir(parents=True)
    code, error = explain(tmp_path, name, HF_HUB_OFFLINE="1")
    assert code == 2
    assert f"there is no tokenizer {name!r}: no such f" in error
    assert (f"did you mean {close}?" in error) == (close is not None)
