"""A tree with a clock of its own, snapshots of it, and the CLI as a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from kvtrie.api.cli import main
from kvtrie.prefix_tree import Match, Namespace, PrefixTree, Root, Snapshot, Tier, take_snapshot

CHUNK_TOKENS = 4
CHUNK_BYTES = 1000
CAPACITY_BYTES = 10_000_000
MODEL = {
    "model_config": "c0" * 32,
    "weights": "3e" * 32,
    "kv_dtype": "float32",
    "layout": '{"layers":2}',
    "chunk_tokens": CHUNK_TOKENS,
}


class Scene:
    """A tree of 4-token chunks over two tiers, and what was put into it."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_800_000_000.0
        self.tree = PrefixTree(
            CHUNK_TOKENS,
            [Tier("device", CAPACITY_BYTES), Tier("host", CAPACITY_BYTES)],
            clock=lambda: self.now,
            steady=lambda: self.now,
        )
        self._directory = directory

    def root(self, scope: str = "tenant:acme", **fields: object) -> Root:
        """The root of a namespace of the model."""
        return self.tree.root(Namespace(scope, **{**MODEL, **fields}))  # type: ignore[arg-type]

    def match(self, root: Root, tokens: Iterable[int], readable: Iterable[Root] = ()) -> Match:
        """As the engine matches."""
        return self.tree.match(root, packed(tokens), readable)

    def put(self, root: Root, tokens: list[int], readable: Iterable[Root] = (), tier: int = 0) -> Match:
        """Stores the whole chunks of `tokens`."""
        match = self.match(root, tokens, readable)
        missing = len(tokens) // CHUNK_TOKENS - len(match.path)
        self.tree.insert_path(match, packed(tokens), tier, [None] * missing, CHUNK_BYTES)
        return self.match(root, tokens, readable)

    def hit(self, root: Root, tokens: list[int], times: int, readable: Iterable[Root] = ()) -> None:
        """Requests that reuse what is there."""
        for _ in range(times):
            self.tree.release(self.tree.lease(self.match(root, tokens, readable)))

    def snapshot(self) -> Snapshot:
        """The tree now."""
        return take_snapshot(self.tree, "engine", {"requests": 3})

    def file(self) -> str:
        """The tree now, as a file."""
        path = self._directory / "snapshot.json"
        path.write_text(self.snapshot().to_json())
        return str(path)


def packed(tokens: Iterable[int]) -> bytes:
    """Tokens as the tree takes them."""
    return np.array(list(tokens), "<i4").tobytes()


@dataclass(frozen=True)
class Ran:
    """A finished call of the CLI."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        """Standard output as JSON."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """An empty tree."""
    return Scene(tmp_path)


@pytest.fixture
def kvtrie(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Calls the CLI. A failure is one line on stderr, never a traceback."""
    monkeypatch.delenv("KVTRIE_API_KEY", raising=False)
    monkeypatch.delenv("KVTRIE_STORE_KEY", raising=False)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        if code in (2, 3) and arguments[0] != "doctor":
            assert out == ""
            assert err.count("\n") == 1
            assert err.startswith(f"kvtrie {arguments[0]}: ")
            assert err.strip().isprintable()
        else:
            assert err == ""
        return Ran(code, out, err)

    return call


EVIL_WORDS = ("\x1b[31mred\x1b]0;title\x07", '"&lt;\\N\\"', "‮drow", "line\nbreak\r\x00\x9b2J", "]];}")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> str:
    """Words `w0` to `w89`, hostile words from 90, and `<s>` (99) before a prompt."""
    vocabulary = {f"w{i}": i for i in range(90)}
    vocabulary |= {word: 90 + i for i, word in enumerate(EVIL_WORDS)}
    vocabulary |= {"<unk>": 98, "<s>": 99}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 99)]
    )
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)
