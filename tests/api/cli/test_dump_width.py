"""`kvtrie dump` in a terminal, and without one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import unicodedata

import pytest
import tokenizers

from kvtrie.api.cli.console import fitted, wrapped

SYSTEM = list(range(1, 9))


@pytest.fixture
def forest(scene):
    """Three tenants of one model; paths of which one has two chunks of its own."""
    for name in ("acme", "bolt", "globex"):
        root = scene.root(f"tenant:{name}", layout='{"layers":2,"heads":8,"dim":64,"rope":{"theta":10000}}')
        scene.put(root, [*SYSTEM, 20, 21, 22, 23])
        scene.put(root, [*SYSTEM, 30, 31, 32, 33])
    return scene


def in_terminal(columns: int, *arguments: str) -> str:
    """What the command prints to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    call = "import sys; from kvtrie.api.cli import main; sys.exit(main())"
    environment = {**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", call, *arguments], stdout=theirs, env=environment)
    os.close(theirs)
    parts = []
    # A terminal whose last writer has ended answers with an error.
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:
        pass
    os.close(ours)
    assert process.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


class TestWidth:
    @pytest.mark.parametrize("columns", [40, 80, 120])
    def test_lines_fit_the_terminal(self, forest, columns, tokenizer_file):
        out = in_terminal(columns, "dump", forest.file(), "--tokenizer", tokenizer_file)
        lines = out.splitlines()
        assert max(map(len, lines)) <= columns
        assert any(line.startswith("└── chunks 1-2 [0:8)") for line in lines)
        assert any(line.endswith("…") for line in lines) == (columns == 40)

    def test_a_pipe_gets_whole_lines(self, forest, kvtrie, tokenizer_file, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        out = kvtrie("dump", forest.file(), "--tokenizer", tokenizer_file).out
        assert max(map(len, out.splitlines())) > 80
        assert '"w1 w2 w3 w4 w5 w6 w7 w8"  2.0 KiB device  used 0 s ago' in out

    def test_width_is_asked_for(self, forest, kvtrie):
        out = kvtrie("dump", forest.file(), "--width", "50").out
        assert max(map(len, out.splitlines())) == 50
        assert max(map(len, in_terminal(40, "dump", forest.file(), "--width", "60").splitlines())) > 40

    def test_previews_make_room_for_facts(self, scene, kvtrie, tokenizer_file):
        scene.put(scene.root(), [*range(1, 41)])
        whole = kvtrie("dump", scene.file(), "--tokenizer", tokenizer_file).out
        cut = kvtrie("dump", scene.file(), "--tokenizer", tokenizer_file, "--width", "80").out
        (line,) = [line for line in cut.splitlines() if "chunks 1-10" in line]
        assert line.endswith("10.0 KiB device  used 0 s ago".replace("10.0", "9.8"))
        assert len(line) == 80
        assert len(next(line for line in whole.splitlines() if "chunks 1-10" in line)) > 80

    @pytest.mark.parametrize("width", ["0", "-5", "19"])
    def test_too_narrow(self, scene, kvtrie, width):
        ran = kvtrie("dump", scene.file(), f"--width={width}")
        assert ran.code == 2
        assert f"--width must be at least 20, got {width}" in ran.err

    def test_a_machines_format_is_never_cut(self, forest):
        out = in_terminal(40, "dump", forest.file(), "--format", "json")
        assert max(map(len, out.splitlines())) > 400

    def test_wide_characters_take_two_columns(self, tmp_path, scene, kvtrie):
        vocabulary = {f"漢字{i}": i for i in range(90)} | {"<unk>": 98}
        path = tmp_path / "wide.json"
        tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>")).save(str(path))
        scene.put(scene.root(), SYSTEM)
        out = kvtrie("dump", scene.file(), "--tokenizer", str(path), "--width", "48").out
        (line,) = [line for line in out.splitlines() if "漢" in line]
        cells = sum(2 if unicodedata.east_asian_width(char) == "W" else 1 for char in line)
        assert 46 <= cells <= 48


class TestSaidOnce:
    def test_what_all_namespaces_have_in_common(self, forest, kvtrie):
        out = kvtrie("dump", forest.file()).out
        for fact in ("config c0c0", "weights 3e3e", "KV float32", "4 tokens per chunk", "exact"):
            assert out.count(fact) == 1
        assert out.count("all 3 namespaces  config") == 1
        for name in ("acme", "bolt", "globex"):
            digest = forest.root(
                f"tenant:{name}", layout='{"layers":2,"heads":8,"dim":64,"rope":{"theta":10000}}'
            )
            assert f"tenant:{name}  4 chunks  namespace {digest.key.hex()[:12]}\n" in out

    def test_what_differs_is_said_of_each(self, scene, kvtrie):
        scene.put(scene.root("tenant:acme", kv_dtype="float32"), SYSTEM)
        scene.put(scene.root("tenant:bolt", kv_dtype="int8", salt="s"), SYSTEM)
        out = kvtrie("dump", scene.file()).out
        first, *rest = [line for line in out.splitlines() if "namespace" in line and "total" not in line]
        assert "KV" not in first
        assert "salted" not in first
        assert [("KV float32" in line, "KV int8" in line, "salted" in line) for line in rest] == [
            (True, False, False),
            (False, True, True),
        ]

    def test_digests_that_begin_alike_are_not_alike(self, scene, kvtrie):
        scene.put(scene.root("tenant:acme", weights="3e" * 31 + "00"), SYSTEM)
        scene.put(scene.root("tenant:bolt", weights="3e" * 31 + "01"), SYSTEM)
        assert kvtrie("dump", scene.file()).out.count("weights 3e3e") == 2


class TestFitted:
    @pytest.mark.parametrize(
        ("line", "columns", "cut"),
        [
            ("abcdef", 6, "abcdef"),
            ("abcdefg", 6, "abcde…"),
            ("漢漢漢", 6, "漢漢漢"),
            ("漢漢漢x", 6, "漢漢…"),
            ("e\u0301" * 6, 6, "e\u0301" * 6),
            ("", 6, ""),
        ],
    )
    def test_cells(self, line, columns, cut, monkeypatch):
        monkeypatch.setattr("kvtrie.api.cli.console.speaks_unicode", lambda: True)
        assert fitted(line, columns) == cut

    def test_lines_are_wrapped_between_facts(self):
        line = "label      one  two two two  three three three"
        assert wrapped(line, 32, 4) == "label      one  two two two\n    three three three"
        assert wrapped(line, 100, 4) == line

    def test_words_are_wrapped_whole(self):
        assert wrapped("label: one two three four five six", 29, 7) == (
            "label: one two three four\n       five six"
        )
