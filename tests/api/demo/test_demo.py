"""The demo on real system prompts, its figures recomputed independently."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from kvtrie.api.cli import main
from kvtrie.api.tokenizer import open_tokenizer
from tests.api.chat_model import SYSTEM, ChatModel

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
CHUNK = 64


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on disk, so that the test takes the way of `--model DIR`."""
    directory = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=131072,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def longest_common_prefix(one: list[int], other: list[int]) -> int:
    length = 0
    for a, b in zip(one, other):
        if a != b:
            break
        length += 1
    return length


def check_document(document: dict[str, object], requests: list[dict[str, str]]) -> None:
    """Every figure of the JSON against the definition, from token lists alone."""
    tokenizer = open_tokenizer("tekken")
    stored: dict[str, list[list[int]]] = {}
    results = document["requests"]
    assert isinstance(results, list)
    assert len(results) == len(requests)
    for request, result in zip(requests, results):
        text = f"<|system|>\n{request['system']}\n<|user|>\n{request['user']}\n<|assistant|>\n"
        prompt = tokenizer.encode(text, special_tokens=False)
        paths = stored.setdefault(request["tenant"], [])
        expected = min(len(prompt) - 1, max((longest_common_prefix(prompt, p) for p in paths), default=0))
        assert result["tenant"] == request["tenant"]
        assert result["prompt_tokens"] == len(prompt)
        assert result["cached_tokens"] == expected
        assert result["identical"] is True
        assert result["ttft_seconds"] > 0
        assert result["ttft_uncached_seconds"] > 0
        # The last token produced was never fed back, so it has no KV; only whole chunks are stored.
        known = prompt + result["output_tokens"][:-1]
        paths.append(known[: len(known) // CHUNK * CHUNK])


def test_real_system_prompts(
    tmp_path: Path, model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SHARED_DATA / "sysprompts_fabric_dev.jsonl.gz"
    if not source.exists():
        pytest.skip(f"{source} is not here")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    assert len(prompts) == 146
    requests = [
        {"tenant": prompt["name"], "system": prompt["text"], "user": f"{question} ({user})"}
        for user, question in enumerate(("What should I do first?", "Summarise this.", "And then what?"))
        for prompt in prompts
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    code = main(
        [
            "demo",
            "--input",
            str(file),
            "--model",
            str(model_directory),
            "--format",
            "json",
            "--max-new-tokens",
            "2",
        ]
    )
    assert code == 0
    check_document(json.loads(capsys.readouterr().out), requests)


def test_shipped_prompts(model_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from kvtrie.api.demo.requests import shipped_requests
    from kvtrie.prefix_tree import Snapshot

    requests = shipped_requests()
    assert len({request.tenant for request in requests}) >= 6
    snapshot = tmp_path / "tree.json"
    code = main(["demo", "--model", str(model_directory), "--format", "json", "--snapshot", str(snapshot)])
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    check_document(document, [{"tenant": r.tenant, "system": r.system, "user": r.user} for r in requests])
    assert document["unshared_kv_bytes"] > 2 * document["kv_bytes"]
    assert len(Snapshot.from_json(snapshot.read_text()).nodes) * CHUNK > 10_000
    assert main(["dump", str(snapshot), "--tokenizer", "tekken", "--scope", "tenant:ternway-air"]) == 0
    assert "Ternway" in capsys.readouterr().out


def test_a_model_with_a_chat_template_gets_messages_and_its_answers_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ChatModel(tmp_path)
    lines = [
        ("acme", "Does the fox jump?"),
        ("acme", "Why not?"),
        ("globex", "And the dog?"),
        ("acme", "When?"),
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text(
        "".join(json.dumps({"tenant": t, "system": SYSTEM, "user": user}) + "\n" for t, user in lines)
    )
    command = [
        "demo",
        "--input",
        str(file),
        "--model",
        str(tmp_path),
        "--memory",
        "16MiB",
        "--per-tenant",
        "2",
    ]
    assert main([*command, "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)["requests"]
    assert [(result["tenant"], result["identical"]) for result in results] == [
        ("acme", True),
        ("acme", True),
        ("globex", True),
    ]
    for (_, user), result in zip(lines, results):
        prompt = tiny.first_prompt(user)
        assert result["prompt_tokens"] == len(prompt)
        assert result["answer"] == tiny.text(tiny.greedy(prompt, 8))
    assert main(command) == 0
    shown = capsys.readouterr().out
    for result in results:
        # A quotation mark and a backslash are escaped.
        assert result["answer"].replace("\\", "\\\\").replace('"', '\\"') in shown
    assert main([*command[:-1], "0"]) == 2
    assert "at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "not JSON"), ("[]", "line 1 must be"), ('{"tenant": "a"}', "line 1 must be"), ("", "no requests")],
)
def test_input_that_cannot_be_used(
    line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    assert main(["demo", "--input", str(file)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
