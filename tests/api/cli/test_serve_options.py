"""`kvtrie serve`'s options: flags, environment, file; and what is refused before a model is loaded."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvtrie.api.cli import serve
from kvtrie.api.cli.serve_options import OPTIONS, add_options, read_options, toml_of
from kvtrie.prefix_tree.errors import InputError


def read(*argv: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return dict(read_options(parser.parse_args(argv), environment or {}))


def test_a_flag_then_the_environment_then_the_file_then_the_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'memory = "1GiB"\npolicy = "lfu"\nchunk_tokens = 16\nlisten = ["unix:///a", "unix:///b"]\n'
    )
    environment = {"KVTRIE_SERVE_MEMORY": "2GiB", "KVTRIE_SERVE_POLICY": "s3fifo", "PATH": "x"}
    found = read("--config", str(file), "--memory", "3GiB", environment=environment)
    assert found["memory"] == "3GiB"
    assert found["policy"] == "s3fifo"
    assert found["chunk_tokens"] == 16
    assert found["listen"] == ["unix:///a", "unix:///b"]
    assert found["max_running"] == 256
    assert read(environment={"KVTRIE_SERVE_SERVED_NAME": "a,b"})["served_name"] == ["a", "b"]


def test_the_printed_configuration_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    found = read("--model", 'a "quoted"\\ name\n', "--drain-seconds", "2.5", "--listen", "unix:///a")
    file = tmp_path / "serve.toml"
    file.write_text(toml_of(found))
    assert read("--config", str(file)) == found
    assert set(found) == {option.name for option in OPTIONS}


@pytest.mark.parametrize(
    ("argv", "environment", "file", "named"),
    [
        ((), {"KVTRIE_SERVE_MEMROY": "1GiB"}, "", "KVTRIE_SERVE_MEMROY"),
        ((), {"KVTRIE_SERVE_CHUNK_TOKENS": "many"}, "", "KVTRIE_SERVE_CHUNK_TOKENS"),
        ((), {"KVTRIE_SERVE_DTYPE": "int8"}, "", "KVTRIE_SERVE_DTYPE"),
        (("--chunk-tokens", "1.5"), {}, "", "--chunk-tokens"),
        ((), {}, "memroy = 1", "memroy"),
        ((), {}, "chunk_tokens = true", "chunk_tokens"),
        ((), {}, "chunk_tokens = 1.5", "chunk_tokens"),
        ((), {}, "listen = [1]", "listen"),
        ((), {}, "memory = ", "not TOML"),
    ],
)
def test_what_is_malformed_is_named(
    tmp_path: Path, argv: tuple[str, ...], environment: dict[str, str], file: str, named: str
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(file)
    with pytest.raises(InputError, match=named):
        read("--config", str(path), *argv, environment=environment)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read("--config", "/nowhere/serve.toml")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "--model"),
        (["--model", "/nowhere"], "no model"),
        (["--model", "m", "--store", "memory://", "--sidecar", "unix:///s"], "pass one"),
        (["--model", "m", "--listen", "http://0.0.0.0:0"], "--tenants"),
        (["--model", "m", "--listen", "nowhere"], "accepted"),
        (["--model", "m", "--memory", "lots"], "lots"),
        (["--model", "m", "--max-body", "0"], "0"),
        (["--model", "m", "--max-waiting", "0"], "at least 1"),
        (["--model", "m", "--drain-seconds", "-1"], "drain_seconds"),
        (["--model", "m", "--device", "nothing"], "--device nothing"),
        (["--model", "m", "--tenants", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_refused_before_a_model_is_loaded(argv: list[str], named: str) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    with pytest.raises(InputError) as caught:
        serve.run(parser.parse_args(argv))
    assert named in str(caught.value)


def test_print_config_needs_no_model_and_no_package() -> None:
    program = "import sys; from kvtrie.api.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", program, "serve", "--memory", "7GiB", "--print-config"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'memory = "7GiB"' in ran.stdout.splitlines()
    assert "# model is not set" in ran.stdout.splitlines()
