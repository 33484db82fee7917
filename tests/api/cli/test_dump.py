"""`kvtrie dump`: what is shown, what is left out, and what must never get through."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from kvtrie.prefix_tree import Snapshot

SYSTEM = list(range(1, 9))
PATHS = {
    "hot": [*SYSTEM, 20, 21, 22, 23],
    "warm": [*SYSTEM, 30, 31, 32, 33],
    "cold": [*SYSTEM, 40, 41, 42, 43],
}


@pytest.fixture
def acme(scene):
    root = scene.root()
    for tokens in PATHS.values():
        scene.put(root, tokens)
    for name, times in (("hot", 5), ("warm", 3), ("cold", 1)):
        scene.hit(root, PATHS[name], times)
    return root


def lines_of(out: str, word: str) -> list[str]:
    return [line for line in out.splitlines() if word in line]


class TestText:
    def test_a_chain_is_folded_and_forks_are_drawn(self, scene, acme, kvtrie):
        out = kvtrie("dump", scene.file()).out
        (trunk,) = lines_of(out, "chunks 1-2 [0:8)")
        assert trunk.startswith("└── ")
        assert "9 hits" in trunk
        assert "2.0 KiB device" in trunk
        forks = lines_of(out, "chunk 3 [8:12)")
        assert [line[:8] for line in forks] == ["    ├── ", "    ├── ", "    └── "]
        assert [re.search(r"(\d) hits?", line)[1] for line in forks] == ["5", "3", "1"]

    def test_expand_shows_every_chunk(self, scene, acme, kvtrie):
        out = kvtrie("dump", scene.file(), "--expand").out
        assert len(lines_of(out, " 1000 B device")) == 5
        assert "[1, 2, 3, 4]" in out

    def test_namespace_header_has_the_model(self, scene, acme, kvtrie):
        out = kvtrie("dump", scene.file()).out
        assert "tenant:acme  5 chunks" in out
        for fact in (
            acme.key.hex()[:12],
            "config c0c0",
            "weights 3e3e",
            "KV float32",
            "exact",
            "4 tokens per chunk",
        ):
            assert fact in out

    def test_readers_pins_pending_and_age(self, scene, acme, kvtrie):
        scene.tree.lease(scene.match(acme, PATHS["hot"]))
        scene.tree.pin(scene.match(acme, PATHS["warm"]).node, "tools", 7200)
        scene.tree.claim(
            scene.match(acme, [*PATHS["cold"], 50, 51, 52, 53]), _packed([*PATHS["cold"], 50, 51, 52, 53])
        )
        scene.now += 180
        out = kvtrie("dump", scene.file()).out
        assert "1 reader" in lines_of(out, "[20, 21")[0]
        assert "pinned tools until 2027-01-15 10:00:00 UTC (2 h left)" in lines_of(out, "[30, 31")[0]
        assert "used 3 min ago" in lines_of(out, "[20, 21")[0]
        assert "pending: being computed for 3 min" in lines_of(out, "[50, 51")[0]

    def test_totals_count_tiers_and_tombstone_memory(self, scene, acme, kvtrie):
        scene.tree.evict(0, 1000)
        scene.put(scene.root("tenant:bolt"), SYSTEM, tier=1)
        out = kvtrie("dump", scene.file()).out
        assert "total  6 chunks, 24 tokens, 2 namespaces" in out
        assert "device: 3.9 KiB of 9.5 MiB in 4 chunks" in out
        assert "host: 2.0 KiB of 9.5 MiB in 2 chunks" in out
        assert "1 tombstone: 680 B" in out

    def test_a_path_that_goes_on_in_another_scope_names_it(self, scene, kvtrie):
        shared, acme = scene.root("shared:tools"), scene.root()
        scene.put(shared, SYSTEM)
        scene.put(acme, PATHS["hot"], [shared])
        out = kvtrie("dump", scene.file()).out
        assert "continued by tenant:acme" in lines_of(out, "chunk 3")[0]

    def test_tokens_as_text(self, scene, acme, kvtrie, tokenizer_file):
        out = kvtrie("dump", scene.file(), "--tokenizer", tokenizer_file).out
        assert '"w1 w2 w3 w4 w5 w6 w7 w8"' in out

    def test_plain_ascii_where_the_terminal_has_no_more(self, scene, acme):
        call = f"from kvtrie.api.cli import main; main(['dump', {scene.file()!r}])"
        ran = subprocess.run(
            [sys.executable, "-c", call], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True
        )
        assert b"`-- chunks 1-2" in ran.stdout
        assert ran.stderr == b""

    def test_a_deep_path_needs_no_deep_stack(self, scene, kvtrie):
        root = scene.root()
        scene.put(root, [7] * 4 * 3000)
        assert "chunks 1-3000 [0:12000)" in kvtrie("dump", scene.file()).out
        assert len(kvtrie("dump", scene.file(), "--expand").out.splitlines()) > 3000
        assert "chunk2999 ->" not in kvtrie("dump", scene.file(), "--format", "dot").out


class TestFilters:
    def test_scope_shows_nothing_of_others(self, scene, acme, kvtrie):
        bolt = scene.root("tenant:bolt")
        scene.put(bolt, [70, 71, 72, 73])
        scene.hit(bolt, [70, 71, 72, 73], 4)
        scene.tree.evict(0, 10**7)
        scene.put(acme, SYSTEM)
        for style in ("text", "json", "dot"):
            out = kvtrie("dump", scene.file(), "--scope", "acme", "--format", style).out
            assert "tenant:acme" in out
            for trace in ("bolt", "70, 71", "70,71", bolt.key.hex()[:12], "requests", "evictions"):
                assert trace not in out
        shown = Snapshot.from_json(kvtrie("dump", scene.file(), "--scope", "acme", "--format", "json").out)
        assert {stone.scope for stone in shown.tombstones} == {"tenant:acme"}
        # Others' use of the tier reads as free, so that the sum still holds.
        assert [(t.used_bytes, t.free_bytes) for t in shown.tiers] == [(2000, 9_998_000), (0, 10_000_000)]

    def test_an_unknown_scope_is_empty_and_tells_no_names(self, scene, acme, kvtrie):
        ran = kvtrie("dump", scene.file(), "--scope", "nobody")
        assert ran.code == 0
        assert "acme" not in ran.out
        assert "total  0 chunks" in ran.out

    def test_a_mistyped_scope_names_those_like_it(self, scene, acme, kvtrie):
        scene.put(scene.root("tenant:bolt"), SYSTEM)
        out = kvtrie("dump", scene.file(), "--scope", "acm").out
        assert out.endswith("tenant:acm is not in this snapshot; did you mean tenant:acme?\n")
        assert "bolt" not in out
        assert "not in this snapshot" not in kvtrie("dump", scene.file(), "--scope", "acme").out
        assert kvtrie("dump", scene.file(), "--scope", "acm", "--format", "json").document["nodes"] == []

    def test_scope_keeps_the_shared_chunks_its_paths_run_through(self, scene, kvtrie):
        shared, acme, bolt = scene.root("shared:tools"), scene.root(), scene.root("tenant:bolt")
        scene.put(shared, SYSTEM)
        scene.put(acme, PATHS["hot"], [shared])
        scene.put(bolt, PATHS["cold"], [shared])
        document = kvtrie("dump", scene.file(), "--scope", "tenant:acme", "--format", "json").document
        assert [node["tokens"] for node in document["nodes"]] == [
            [1, 2, 3, 4],
            [5, 6, 7, 8],
            [20, 21, 22, 23],
        ]

    def test_depth(self, scene, acme, kvtrie):
        document = kvtrie("dump", scene.file(), "--depth", "2", "--format", "json").document
        assert [node["depth"] for node in document["nodes"]] == [1, 2]
        out = kvtrie("dump", scene.file(), "--depth", "2").out
        assert "+3 not shown below" in out
        assert "2 chunks of 5" in out

    def test_top_keeps_the_hottest_paths_whole(self, scene, acme, kvtrie):
        document = kvtrie("dump", scene.file(), "--top", "2", "--format", "json").document
        assert [node["tokens"][0] for node in document["nodes"]] == [1, 5, 20, 30]

    @pytest.mark.parametrize("option", ["--depth", "--top"])
    def test_zero_is_refused(self, scene, kvtrie, option):
        assert kvtrie("dump", scene.file(), option, "0").code == 2

    def test_json_is_the_snapshot(self, scene, acme, kvtrie):
        ran = kvtrie("dump", scene.file(), "--format", "json")
        assert Snapshot.from_json(ran.out) == scene.snapshot()
        assert json.loads(ran.out)["format"] == "kvtrie-snapshot"


class TestHostileText:
    @pytest.fixture
    def hostile(self, scene):
        root = scene.root("tenant:\x1b[2J\u202eevil\n", layout='"]; \\N &amp;')
        match = scene.put(root, [90, 91, 92, 93, 94, 95, 96, 97])
        scene.tree.pin(match.node, 'pin\x07"\ud800 \\', None)
        return scene

    @pytest.mark.parametrize("style", ["text", "dot", "json"])
    def test_no_control_character_gets_out(self, hostile, kvtrie, tokenizer_file, style):
        out = kvtrie("dump", hostile.file(), "--tokenizer", tokenizer_file, "--format", style).out
        assert all(char.isprintable() for char in out.replace("\n", ""))
        if style != "json":
            assert "\\x1b[31mred" in out.replace("\\\\", "\\")

    def test_a_text_stays_on_its_line(self, hostile, kvtrie, tokenizer_file):
        out = kvtrie("dump", hostile.file(), "--tokenizer", tokenizer_file).out
        assert len(lines_of(out, "chunks 1-2")) == 1
        assert not [line for line in out.splitlines() if line.startswith("break")]

    def test_stats_and_explain_escape_too(self, hostile, kvtrie, tokenizer_file):
        for arguments in (["stats"], ["explain", "--tokens", "90,91,92,93,1", "--tokenizer", tokenizer_file]):
            out = kvtrie(arguments[0], hostile.file(), *arguments[1:]).out
            assert all(char.isprintable() for char in out.replace("\n", ""))

    def test_dot_is_whole(self, hostile, kvtrie, tokenizer_file):
        out = kvtrie("dump", hostile.file(), "--tokenizer", tokenizer_file, "--format", "dot").out
        check_dot(out)
        assert "&amp;lt;" in out

    def test_dot_of_a_forest(self, scene, acme, kvtrie):
        scene.put(scene.root("tenant:bolt"), SYSTEM)
        nodes, edges = check_dot(kvtrie("dump", scene.file(), "--format", "dot").out)
        # Two roots; acme's trunk and three leaves; bolt's one line.
        assert len(nodes) == 2 + 4 + 1
        assert len(edges) == 5


def check_dot(text: str) -> tuple[set[str], list[tuple[str, str]]]:
    """Every line is a declared node or an edge between declared ones, and Graphviz (if here) agrees."""
    assert text.startswith("digraph kvtrie {\n")
    assert text.endswith("\n}\n")
    value = r'(?:"(?:[^"\\]|\\.)*"|[\w.]+)'
    attributes = rf"\[\w+={value}(?: \w+={value})*\]"
    nodes: set[str] = set()
    edges: list[tuple[str, str]] = []
    for line in text.splitlines()[4:-1]:
        node = re.fullmatch(rf"  (\w+) {attributes};", line)
        edge = re.fullmatch(rf"  (\w+) -> (\w+)(?: {attributes})?;", line)
        assert node or edge, line
        if edge:
            assert {edge[1], edge[2]} <= nodes
            edges.append((edge[1], edge[2]))
        elif node:
            assert node[1] not in nodes
            nodes.add(node[1])
    if shutil.which("dot"):
        plain = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, check=True)
        assert plain.stderr == b""
        kinds = [line.split(b" ")[0] for line in plain.stdout.splitlines()]
        assert (kinds.count(b"node"), kinds.count(b"edge")) == (len(nodes), len(edges))
    return nodes, edges


def _packed(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def test_a_reader_that_left_is_no_error(scene, acme):
    call = f"import sys; from kvtrie.api.cli import main; sys.exit(main(['dump', {scene.file()!r}]))"
    ran = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ran.stdout.close()
    assert ran.stderr.read() == b""
    assert ran.wait() == 0
    ran.stderr.close()
