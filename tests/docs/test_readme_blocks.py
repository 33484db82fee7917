"""README's programs and commands, run as they are there. `tests/test_readme.py` runs the first program.

What a test cannot have gives way: 2GiB of pool to 2MiB, port 7070 to a free one, `dot` to nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from kvtrie.api import Eviction, PrefixCachedModel
from tests.api.chat_model import ChatModel
from tests.docs.markdown import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
KVTRIE = str(Path(sys.executable).with_name("kvtrie"))
KEY = "0123456789abcdef0123456789abcdef"

SERVE = """
from transformers import AutoModelForCausalLM
from kvtrie import PrefixCachedModel
model = AutoModelForCausalLM.from_pretrained(".").eval()
with PrefixCachedModel(model, memory="8MiB", chunk_tokens=8) as cached:
    for last in range(6):
        cached.submit([*range(5, 45), 50 + last], max_new_tokens=2, tenant="acme")
        cached.engine.run()
"""


def programs(heading: str) -> list[str]:
    section = README.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def commands(word: str) -> list[list[str]]:
    """Arguments behind `kvtrie`, of every line that begins with `kvtrie WORD`; comments and pipes are left out."""
    joined = README.replace("\\\n", " ")
    lines = re.findall(rf"^ {{4}}kvtrie ({word}\b.*)$", joined, re.MULTILINE)
    return [shlex.split(line.partition("|")[0], comments=True) for line in lines]


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatModel:
    monkeypatch.chdir(tmp_path)
    return ChatModel(tmp_path)


@pytest.fixture
def names(chat: ChatModel) -> dict[str, Any]:
    """What the programs take as given."""
    return {
        "model": chat.model,
        "tokenizer": chat.tokenizer,
        "batch": dict(chat.tokenizer("Who jumps over the dog?", return_tensors="pt")),
        "system_prompt": "You answer questions about foxes. " * 40,
        "question": "Who jumps?",
        "tool_prompt": "Tools: none. " * 40,
    }


def run(words: list[str]) -> str:
    done = subprocess.run([KVTRIE, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def test_wrapping_a_model_and_looking_into_its_tree(names: dict[str, Any], capsys: Any) -> None:
    wrap, share = programs("Wrap a Hugging Face model")
    exec(wrap.replace("2GiB", "2MiB"), names)
    # generate's prompt; then a question behind 1,000 and more tokens that `warm` had computed.
    cached = names["cached"].stats()
    assert cached["requests"] == 3
    warmed = len(names["tokenizer"](names["system_prompt"])["input_ids"])
    assert warmed - 64 <= cached["cached_tokens"] <= warmed
    capsys.readouterr()
    # The shared block makes a wrapper of the default size; only its arguments are README's.
    small = lambda *args, **kwargs: PrefixCachedModel(*args, memory="4MiB", **kwargs)  # noqa: E731
    exec(share, {**names, "PrefixCachedModel": small})

    Path("prompt.txt").write_text(names["system_prompt"] + "Who else?")
    for words in commands("dump"):
        assert "acme" in run([word if word != "tekken" else "." for word in words])
    (explain,) = commands("explain")
    told = run([word if word != "tekken" else "." for word in explain])
    assert "cached" in told and "verdict" in told
    (stats,) = [words for words in commands("stats") if "--url" not in words]
    assert "tenant:acme" in run(stats)
    assert "ok" in run(commands("doctor")[0])


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[str]:
    """The command of the README, on a free port, with the example's tenants and keys of one's own."""
    (words,) = commands("sidecar")
    text = (REPOSITORY / "examples" / "tenants.toml").read_text(encoding="utf-8")
    for placeholder in re.findall(r"replace-me[\w-]*", text):
        text = text.replace(f'"{placeholder}"', f'"{KEY if "acme" in placeholder else f"{KEY}admin"}"')
    text = re.sub(r'api_key_sha256 = "\w+"', f'api_key = "{KEY}bolt"', text)
    (tmp_path / "tenants.toml").write_text(text)
    words = [word.replace(":7070", ":0") for word in words]
    process = subprocess.Popen([KVTRIE, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def test_running_a_sidecar(names: dict[str, Any], sidecar: str) -> None:
    (program,) = programs("Run a sidecar")
    program = program.replace("http://127.0.0.1:7070", sidecar).replace('"..."', f'"{KEY}"')
    small = lambda *args, **kwargs: PrefixCachedModel(*args, memory="4MiB", **kwargs)  # noqa: E731
    prompt = list(range(5, 205))
    counts = []
    for _ in range(2):
        given = {**names, "PrefixCachedModel": small}
        exec("cached = " + program, given)
        with given["cached"] as cached:
            completion = cached.submit(prompt, max_new_tokens=1)
            cached.engine.run()
            assert completion.error is None
            assert cached.flush()
            counts.append(completion.cached_tokens)
    # The second wrapper stands for another process: three whole chunks of 64 come from the sidecar.
    assert counts == [0, 192]


def test_measuring_with_traffic(chat: ChatModel) -> None:
    Path("serve.py").write_text(SERVE)
    LlamaConfig.from_pretrained(".").save_pretrained("served")
    (record,) = commands("trace record")
    run([word if word != "python" else sys.executable for word in record])
    lines = Path("traffic.jsonl").read_text().splitlines()
    assert sum("ids" in json.loads(line) for line in lines) == 6
    (simulate,) = commands("trace simulate")
    told = run([word.replace("8GiB", "64KiB") for word in simulate])
    assert all(policy in told for policy in ("lru", "lfu", "learned", "opt"))


def test_the_eviction_of_the_text() -> None:
    (found,) = re.findall(r"`eviction=(Eviction\(.*?\))`", README)
    assert eval(found, {"Eviction": Eviction}).policy == "learned"
