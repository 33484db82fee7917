"""`kvtrie explain`: each answer, against an expectation that was not computed by the code under test."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest

from kvtrie.api.inspection.explain import explain
from kvtrie.api.inspection.explanation import VERDICTS, Question
from kvtrie.prefix_tree import Snapshot

A, B, C = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]


def ids(tokens: list[int]) -> str:
    return ",".join(map(str, tokens))


@pytest.fixture
def ask(scene, kvtrie):
    """Explains a prompt of scope acme against the scene, as JSON."""

    def call(tokens: list[int], *more: str, scope: str | None = "tenant:acme") -> dict[str, object]:
        whose = [] if scope is None else ["--scope", scope]
        ran = kvtrie("explain", scene.file(), "--tokens", ids(tokens), *whose, *more, "--format", "json")
        assert ran.code == 0
        text = kvtrie("explain", scene.file(), "--tokens", ids(tokens), *whose, *more).out
        assert f"verdict     {ran.document['verdict']}: " in text
        return ran.document

    return call


class TestMatch:
    def test_all_but_the_last_token(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        found = ask([*A, *B])
        assert found["verdict"] == "hit"
        assert (found["cached_tokens"], found["whole_chunks"], found["partial_tokens"]) == (7, 2, 0)
        assert found["divergence"] is None

    def test_a_prompt_shorter_than_a_chunk(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        found = ask([1, 2, 99])
        assert found["verdict"] == "short"
        assert (found["cached_tokens"], found["whole_chunks"], found["partial_tokens"]) == (2, 0, 2)

    def test_one_token_is_always_computed(self, scene, ask):
        scene.put(scene.root(), A)
        assert ask([1])["cached_tokens"] == 0

    def test_whole_chunks_then_a_part_of_one(self, scene, ask):
        scene.put(scene.root(), [*A, *B, *C])
        scene.put(scene.root(), [*A, 5, 60, 61, 62])
        found = ask([*A, 5, 6, 70, 71, 72, 73])
        assert found["verdict"] == "diverged"
        assert (found["cached_tokens"], found["whole_chunks"], found["partial_tokens"]) == (6, 1, 2)
        assert found["divergence"] == {
            "position": 6,
            "before": [1, 2, 3, 4, 5, 6],
            "prompt": [70, 71, 72, 73],
            "stored": [7, 8, 9, 10, 11, 12],
            "scope": "tenant:acme",
            "change": None,
        }

    def test_a_tail_that_fills_no_chunk(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        found = ask([*A, *B, 50, 51, 52])
        assert (found["verdict"], found["cached_tokens"]) == ("tail", 8)

    def test_a_path_that_ends(self, scene, ask):
        scene.put(scene.root(), A)
        found = ask([*A, *B, *C])
        assert (found["verdict"], found["cached_tokens"]) == ("ends", 4)
        assert found["divergence"]["stored"] == []

    def test_chunks_by_fastest_tier(self, scene, ask):
        root = scene.root()
        scene.put(root, [*A, *B], tier=1)
        scene.put(root, A, tier=0)
        match = scene.match(root, A)
        scene.tree.insert(root, root, match.node.key, match.node.tokens, 0, None, 1000)
        assert ask([*A, *B, 1])["tiers"] == {"device": 1, "host": 1}

    @pytest.mark.parametrize("seed", range(5))
    def test_cached_tokens_are_those_of_every_stored_path(self, scene, seed):
        draw = random.Random(seed)
        root, stored = scene.root(), []
        for _ in range(30):
            tokens = [draw.randrange(2) for _ in range(4 * draw.randrange(1, 6))]
            scene.put(root, tokens)
            stored.append(tokens)
        snapshot = scene.snapshot()
        for _ in range(100):
            prompt = [draw.randrange(2) for _ in range(draw.randrange(1, 26))]
            longest = max(_common(prompt, tokens) for tokens in stored)
            found = explain(snapshot, prompt, Question("tenant:acme"))
            assert found.cached_tokens == min(len(prompt) - 1, longest)
            assert found.cached_tokens == scene.match(root, prompt[:-1]).cached_tokens


class TestNamespace:
    def test_names_the_field_and_both_values(self, scene, ask):
        scene.put(scene.root(kv_dtype="bfloat16"), [*A, *B])
        scene.root()
        found = ask([*A, *B, 1], "--expect", "kv_dtype=float32")
        assert (found["verdict"], found["cached_tokens"]) == ("namespace", 0)
        (other,) = found["elsewhere"]
        assert other["matched_tokens"] == 8
        assert other["differences"] == [{"field": "kv_dtype", "request": "float32", "stored": "bfloat16"}]

    def test_an_expectation_nothing_was_cached_under(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        found = ask([*A, *B, 1], "--expect", "weights=" + "ab" * 32, "--expect", "revision=v2")
        assert (found["verdict"], found["namespace"]) == ("namespace", None)
        assert [(d["field"], d["request"]) for d in found["elsewhere"][0]["differences"]] == [
            ("weights", "ab" * 32),
            ("revision", "v2"),
        ]

    def test_a_shortened_digest_will_do(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        assert ask([*A, *B], "--expect", "weights=3e3e3e3e")["verdict"] == "hit"
        assert ask([*A, *B], "--expect", "weights=3e3e")["verdict"] == "namespace"

    def test_a_namespace_document(self, scene, ask, tmp_path):
        scene.put(scene.root(fidelity="int8"), [*A, *B])
        mine = scene.root(salt="secret")
        path = tmp_path / "namespace.json"
        path.write_text(mine.namespace.to_json())
        found = ask([*A, *B, 1], "--namespace-json", str(path), scope=None)
        assert found["scope"] == "tenant:acme"
        assert [d["field"] for d in found["elsewhere"][0]["differences"]] == ["salt", "fidelity"]
        assert "secret" not in json.dumps(found)

    def test_without_expectations_the_best_match_counts_and_others_are_named(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        scene.put(scene.root(revision="v2"), [*A, *C])
        found = ask([*A, *B])
        assert found["verdict"] == "hit"
        assert found["elsewhere"][0]["matched_tokens"] == 4
        assert found["elsewhere"][0]["differences"] == [{"field": "revision", "request": "", "stored": "v2"}]


class TestScopes:
    def test_another_tenant_is_never_seen(self, scene, ask, kvtrie):
        scene.put(scene.root("tenant:bolt"), [*A, *B])
        scene.put(scene.root("shared:tools"), [*A, *B])
        scene.tree.evict(0, 1000)
        found = ask([*A, *B, 1])
        assert (found["verdict"], found["cached_tokens"], found["scopes"]) == ("empty", 0, [])
        assert found["eviction"] is None
        out = kvtrie("explain", scene.file(), "--tokens", ids([*A, *B, 1]), "--scope", "acme").out
        for trace in ("bolt", "tools", "evict"):
            assert trace not in out

    def test_without_a_scope_the_scopes_are_listed(self, scene, ask):
        scene.put(scene.root("tenant:bolt"), [*A, *B])
        scene.put(scene.root("shared:tools"), C)
        found = ask([40, 41, 42, 43, 44], scope=None)
        assert (found["verdict"], found["scopes"]) == ("diverged", ["shared:tools", "tenant:bolt"])

    def test_an_empty_snapshot(self, scene, ask):
        assert ask([*A, 1], scope=None)["verdict"] == "empty"

    def test_a_shared_scope_counts_once_it_is_named(self, scene, ask):
        scene.put(scene.root("shared:tools"), [*A, *B])
        assert ask([*A, *B, 1])["verdict"] == "empty"
        found = ask([*A, *B, 1], "--shared", "tools")
        assert (found["cached_tokens"], found["through"]) == (8, ["shared:tools"])

    def test_a_tenants_own_continuation_of_a_shared_path(self, scene, ask):
        shared, acme = scene.root("shared:tools"), scene.root()
        scene.put(shared, [*A, *B])
        scene.put(acme, [*A, *B, *C], [shared])
        found = ask([*A, *B, *C, 1])
        assert (found["cached_tokens"], found["through"]) == (12, ["shared:tools", "tenant:acme"])
        assert ask([*A, *B, *C, 1], scope="tenant:bolt")["verdict"] == "empty"

    def test_a_shared_scope_of_another_model_differs_by_the_model_only(self, scene, ask):
        scene.put(scene.root("shared:tools", weights="00" * 32, salt="s"), [*A, *B])
        scene.put(scene.root(), C)
        found = ask([*A, *B, 1], "--shared", "shared:tools")
        assert found["verdict"] == "namespace"
        assert [d["field"] for d in found["elsewhere"][0]["differences"]] == ["weights"]


class TestEvicted:
    def test_when_why_and_from_where(self, scene, ask):
        scene.put(scene.root(), [*A, *B, *C])
        scene.now += 10
        scene.tree.evict(0, 2000, "making room")
        scene.now += 50
        found = ask([*A, *B, *C, 1])
        assert (found["verdict"], found["cached_tokens"]) == ("evicted", 4)
        gone = found["eviction"]
        assert (gone["chunk"], gone["chunks"], gone["tier"], gone["reason"]) == (
            2,
            2,
            "device",
            "making room",
        )
        assert (gone["evicted_at"], gone["seconds_ago"]) == (1_800_000_010.0, 50.0)

    def test_another_prompts_eviction_is_not_this_ones(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        scene.tree.evict(0, 1000)
        found = ask([*A, *C, 1])
        assert (found["verdict"], found["eviction"]) == ("ends", None)

    def test_of_everything_there_was(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        scene.tree.evict(0, 10**6)
        assert ask([*A, *B, 1])["verdict"] == "evicted"

    def test_of_a_continuation_of_a_shared_path(self, scene, ask):
        shared, acme = scene.root("shared:tools"), scene.root()
        scene.put(shared, [*A, *B])
        scene.put(acme, [*A, *B, *C], [shared])
        scene.put(acme, [*A, *B, 60, 61, 62, 63], [shared])
        scene.tree.evict(0, 1000)
        found = ask([*A, *B, *C, 1])
        assert (found["eviction"]["chunk"], found["cached_tokens"]) == (3, 8)
        assert (found["divergence"]["stored"], found["divergence"]["scope"]) == (
            [60, 61, 62, 63],
            "tenant:acme",
        )


class TestComputing:
    def test_chunks_on_their_way(self, scene, ask):
        root = scene.root()
        scene.put(root, A)
        tokens = [*A, *B, *C]
        scene.tree.claim(scene.match(root, tokens), b"".join(t.to_bytes(4, "little") for t in tokens))
        scene.now += 3
        found = ask([*tokens, 1])
        assert (found["verdict"], found["cached_tokens"]) == ("computing", 4)
        assert found["computing"] == {"chunk": 2, "chunks": 2, "tokens": 8, "seconds": 3.0}


class TestTokenizer:
    def test_text_on_both_sides_of_a_divergence(self, scene, kvtrie, tokenizer_file):
        scene.put(scene.root(), [99, 1, 2, 3, 4, 5, 6, 7])
        where = [scene.file(), "--scope", "acme", "--tokenizer", tokenizer_file]
        ran = kvtrie("explain", *where, "--text", "w1 w2 w3 w4 w50 w6 w7 w8", "--format", "json")
        divergence = ran.document["divergence"]
        assert divergence["before_text"] == "<s> w1 w2 w3 w4"
        assert divergence["prompt_text"].startswith("w50 w6")
        assert divergence["stored_text"] == "w5 w6 w7"
        assert '"w50 w6 w7 w8"' in kvtrie("explain", *where, "--text", "w1 w2 w3 w4 w50 w6 w7 w8").out

    def test_special_tokens_are_a_hint_when_they_are_the_reason(self, scene, kvtrie, tokenizer_file):
        scene.put(scene.root(), [*A, *B])
        where = [scene.file(), "--tokenizer", tokenizer_file, "--text", "w1 w2 w3 w4 w5 w6 w7 w8 w9"]
        ran = kvtrie("explain", *where)
        assert "cached      0 tokens" in ran.out
        assert "the same text has 8 cached tokens: pass --no-special-tokens" in ran.out
        assert "cached      8 tokens" in kvtrie("explain", *where, "--no-special-tokens").out

    def test_prompts_from_files_and_standard_input(
        self, scene, kvtrie, tokenizer_file, tmp_path, monkeypatch
    ):
        scene.put(scene.root(), [*A, *B])
        (tmp_path / "prompt.txt").write_text("w1 w2 w3 w4 w5")
        (tmp_path / "ids.json").write_text("[1, 2,\n 3, 4, 5]")
        for prompt in (
            [
                "--text-file",
                str(tmp_path / "prompt.txt"),
                "--tokenizer",
                tokenizer_file,
                "--no-special-tokens",
            ],
            ["--tokens", "@" + str(tmp_path / "ids.json")],
        ):
            ran = kvtrie("explain", scene.file(), *prompt, "--format", "json")
            assert ran.document["cached_tokens"] == 4
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2 3 4 5")))
        ran = kvtrie("explain", scene.file(), "--tokens", "@-", "--format", "json")
        assert ran.document["cached_tokens"] == 4

    def test_unknown_ids_are_shown_as_such(self, scene, kvtrie, tokenizer_file):
        scene.put(scene.root(), [5000, 1, 2**31 - 1, 2])
        out = kvtrie("dump", scene.file(), "--tokenizer", tokenizer_file).out
        assert '"<5000>w1<2147483647>w2"' in out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tokens", "1,2", "--text", "x"],
        ["--text", "without a tokenizer"],
        ["--tokens", "1,x"],
        ["--tokens", "-1"],
        ["--tokens", "4294967296"],
        ["--tokens", "99999999999999999999"],
        ["--tokens", ""],
        ["--tokens", "@/nowhere"],
        ["--tokens", "@\x1b[2J"],
        ["--text-file", "/nowhere"],
        ["--tokens", "1", "--tokenizer", "/nowhere/at/all"],
        ["--tokens", "1", "--tokenizer", __file__],
        ["--tokens", "1", "--expect", "nonsense=1"],
        ["--tokens", "1", "--expect", "kv_dtype"],
        ["--tokens", "1", "--expect", "chunk_tokens=0"],
        ["--tokens", "1", "--expect", "chunk_tokens=many"],
        ["--tokens", "1", "--namespace-json", __file__],
        ["--tokens", "1", "--scope", "tenant:acme", "--expect", "scope=tenant:bolt"],
    ],
)
def test_bad_input_is_one_line(scene, kvtrie, arguments, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert kvtrie("explain", scene.file(), *arguments).code == 2


def test_json_has_every_field_of_the_answer(scene, ask):
    scene.put(scene.root(), A)
    found = ask([*A, 5])
    assert found["format"] == "kvtrie-explanation"
    assert found["version"] == 1
    assert found["verdict"] in VERDICTS
    assert set(found) == {
        *("format", "version", "verdict", "meaning", "scope", "namespace", "prompt_tokens", "chunk_tokens"),
        *("cached_tokens", "whole_chunks", "partial_tokens", "tiers", "through", "divergence", "elsewhere"),
        *("computed_tokens", "computed_seconds", "unknown_scopes", "advice"),
        *("eviction", "computing", "gap", "scopes", "hint"),
    }


def test_input_is_not_changed(scene):
    scene.put(scene.root(), [*A, *B])
    snapshot = scene.snapshot()
    explain(snapshot, [*A, 9, 9, 9, 9], Question())
    assert snapshot == Snapshot.from_json(snapshot.to_json())


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
