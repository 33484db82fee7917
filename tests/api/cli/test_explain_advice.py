"""`kvtrie explain`: what a miss costs, what change caused it, and what to do. Expectations are counted by hand."""

from __future__ import annotations

import re

import pytest

TEXT = list(range(100, 140))
"""Ten chunks of four tokens."""
A, B, C = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]


@pytest.fixture
def ask(scene, kvtrie):
    """Explains a prompt against the scene: the JSON document, and the text."""

    def call(tokens: list[int], *more: str, scope: str | None = "tenant:acme") -> tuple[dict, str]:
        whose = [] if scope is None else ["--scope", scope]
        arguments = ["explain", scene.file(), "--tokens", ",".join(map(str, tokens)), *whose, *more]
        return kvtrie(*arguments, "--format", "json").document, kvtrie(*arguments).out

    return call


def advice_of(document: dict) -> list[tuple[str, int]]:
    return [(advice["action"], advice["saves_tokens"]) for advice in document["advice"]]


class TestChange:
    def test_a_line_was_inserted(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:6], 900, 901, 902, *TEXT[6:]])
        assert (found["verdict"], found["divergence"]["position"]) == ("diverged", 6)
        assert found["divergence"]["change"] == {
            "kind": "inserted",
            "prompt_tokens": 3,
            "stored_tokens": 0,
            "after_tokens": 34,
            "same_tokens": 34,
        }
        assert "inserted: 3 tokens that the stored path lacks" in text
        assert "34 of 34 tokens after it are the same" in text
        # All but the last of them: that one is always computed. 43 tokens, 6 cached.
        assert advice_of(found) == [("reorder", 34)]
        assert "move the text that changes to the end of the prompt; up to 34 more tokens" in text

    def test_a_line_was_removed(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:10], *TEXT[15:]])
        change = found["divergence"]["change"]
        assert (change["kind"], change["prompt_tokens"], change["stored_tokens"]) == ("removed", 0, 5)
        assert (change["same_tokens"], change["after_tokens"]) == (25, 25)
        assert "removed: 5 tokens of the stored path" in text
        # 35 tokens, 10 cached, and one that is always computed.
        assert advice_of(found) == [("reorder", 24)]
        assert "keep the text that is missing" in text

    def test_a_line_was_replaced_and_a_question_follows(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:9], 900, 901, 902, *TEXT[11:], 950, 951, 952, 953, 954])
        change = found["divergence"]["change"]
        assert (change["kind"], change["prompt_tokens"], change["stored_tokens"]) == ("replaced", 3, 2)
        assert (change["same_tokens"], change["after_tokens"]) == (29, 34)
        assert "replaced: 2 tokens of the stored path, by 3" in text
        assert "29 of 34 tokens after it are the same" in text
        assert advice_of(found) == [("reorder", 29)]

    def test_one_token_before_all_others_is_no_line_to_move(self, scene, ask):
        scene.put(scene.root(), TEXT)
        for prompt in ([99, *TEXT], TEXT[1:]):
            found, text = ask(prompt)
            assert [advice["action"] for advice in found["advice"]] == ["begin"]
            assert "BOS" in text
            assert "move the text" not in text

    def test_nothing_after_it_is_the_same(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:10], *range(900, 930)])
        assert (found["verdict"], found["divergence"]["change"], found["advice"]) == ("diverged", None, [])
        assert "nothing after it is the same" in text
        assert "advice" not in text

    def test_less_than_a_chunk_that_is_the_same_is_no_reason_for_advice(self, scene, ask):
        root = scene.root()
        scene.put(root, TEXT)
        found, _ = ask([*TEXT[:10], 900, *TEXT[11:14], 901, 902, 903])
        assert (found["divergence"]["change"], found["advice"]) == (None, [])

    def test_of_several_stored_paths_the_one_that_is_the_same_again(self, scene, ask):
        """The others are used more often, and one of them is as long."""
        root = scene.root()
        popular = [*TEXT[:8], *range(500, 532)]
        scene.put(root, TEXT)
        scene.put(root, popular)
        scene.put(root, [*TEXT[:16], *range(600, 632)])
        scene.hit(root, popular, 9)
        found, _ = ask([*TEXT[:8], 900, 901, *TEXT[8:]])
        assert found["divergence"]["change"]["same_tokens"] == 32
        assert found["divergence"]["stored"] == TEXT[8:16]

    def test_a_path_that_goes_on_in_a_scope_of_its_own(self, scene, ask):
        shared, acme = scene.root("shared:tools"), scene.root()
        scene.put(shared, TEXT[:12])
        scene.put(acme, TEXT, [shared])
        found, _ = ask([*TEXT[:6], 900, *TEXT[6:]])
        assert found["divergence"]["change"]["same_tokens"] == 34


class TestHit:
    @pytest.mark.parametrize("prompt", [TEXT, [*TEXT[:-1], 900], [1, 2, 99], [*TEXT[:30], 900]])
    def test_a_hit_is_not_said_to_diverge(self, scene, ask, prompt):
        scene.put(scene.root(), TEXT)
        scene.put(scene.root(), A)
        found, text = ask(prompt)
        assert found["cached_tokens"] == len(prompt) - 1
        assert (found["divergence"], found["advice"]) == (None, [])
        for word in ("diverge", "differs", "ends", "change", "advice"):
            assert word not in text.replace("verdict     short: the prompt is shorter", "")

    def test_a_tail_after_the_last_stored_chunk_is_not_said_to_diverge(self, scene, ask):
        scene.put(scene.root(), [*A, *B])
        found, text = ask([*A, *B, 50, 51])
        assert (found["verdict"], found["divergence"]) == ("tail", None)
        assert "diverges" not in text

    def test_a_path_that_ends_is_said_to_end(self, scene, ask):
        scene.put(scene.root(), A)
        _, text = ask([*A, *B, *C])
        assert re.search(r"^ends +at token 4: no stored path continues from there$", text, re.MULTILINE)
        assert "diverges" not in text


class TestCost:
    def test_tokens_and_time(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:20], *range(900, 910)], "--prefill-rate", "40")
        assert (found["cached_tokens"], found["computed_tokens"]) == (20, 10)
        assert found["computed_seconds"] == 0.25
        assert re.search(r"^cost +10 tokens to compute, about 250 ms$", text, re.MULTILINE)

    def test_no_time_without_a_rate(self, scene, ask):
        scene.put(scene.root(), TEXT)
        found, text = ask([*TEXT[:20], *range(900, 910)])
        assert found["computed_seconds"] is None
        assert re.search(r"^cost +10 tokens to compute$", text, re.MULTILINE)

    @pytest.mark.parametrize("rate", ["0", "-3", "nan", "inf", "fast", ""])
    def test_a_rate_that_is_none(self, scene, kvtrie, rate):
        ran = kvtrie("explain", scene.file(), "--tokens", "1,2", f"--prefill-rate={rate}")
        assert ran.code == 2
        assert "--prefill-rate" in ran.err

    def test_the_last_token_is_not_counted_twice(self, scene, ask):
        """8 tokens in two chunks are stored; the last one is computed in any case."""
        scene.put(scene.root(), [*A, *B])
        scene.put(scene.root(revision="v2"), [*A, *B])
        found, text = ask([*A, *B])
        assert "cached      7 tokens (88 %): 2 whole chunks, but not the prompt's last token" in text
        assert found["elsewhere"][0]["matched_tokens"] == 7
        assert "7 tokens cached (as many) under" in text


class TestScopes:
    @pytest.fixture
    def tenants(self, scene):
        for name in ("acme", "acme-eu", "bolt"):
            scene.put(scene.root(f"tenant:{name}"), A)
        scene.put(scene.root("shared:tools"), B)

    def test_a_mistyped_scope_names_those_like_it_the_closest_first(self, scene, tenants, ask):
        found, text = ask([*A, 1], scope="tenant:acmee")
        assert found["unknown_scopes"] == [
            {"scope": "tenant:acmee", "close": ["tenant:acme", "tenant:acme-eu"]}
        ]
        assert "tenant:acmee is not in this snapshot; did you mean tenant:acme or tenant:acme-eu?" in text
        assert "bolt" not in text

    def test_a_mistyped_shared_scope(self, scene, tenants, ask):
        found, _ = ask([*A, 1], "--shared", "tolls")
        assert found["unknown_scopes"] == [{"scope": "shared:tolls", "close": ["shared:tools"]}]

    def test_one_like_no_other_tells_no_names(self, scene, tenants, ask):
        found, text = ask([*A, 1], scope="xyz")
        assert found["unknown_scopes"] == [{"scope": "tenant:xyz", "close": []}]
        assert "tenant:xyz is not in this snapshot: kvtrie stats lists its scopes" in text
        for name in ("acme", "bolt", "tools"):
            assert name not in text

    def test_a_known_scope_is_not_said_to_be_unknown(self, scene, tenants, ask):
        found, _ = ask([*A, 1], "--shared", "tools")
        assert found["unknown_scopes"] == []

    def test_a_scope_of_which_only_an_eviction_is_left(self, scene, ask):
        scene.put(scene.root(), A)
        scene.tree.evict(0, 10**6)
        assert ask([*A, 1])[0]["unknown_scopes"] == []


class TestOtherAdvice:
    def test_a_setting_in_which_two_processes_differ(self, scene, ask):
        scene.put(scene.root(kv_dtype="bfloat16"), [*A, *B])
        scene.root()
        found, text = ask([*A, *B, 1], "--expect", "kv_dtype=float32")
        assert advice_of(found) == [("align", 8)]
        assert "run both with the same kv_dtype" in text

    def test_other_weights_cannot_be_shared(self, scene, ask):
        scene.put(scene.root(weights="00" * 32, kv_dtype="int8"), [*A, *B])
        found, _ = ask([*A, *B, 1], "--expect", "weights=" + "ab" * 32, "--expect", "kv_dtype=float32")
        assert (found["verdict"], found["advice"]) == ("namespace", [])

    def test_the_same_prompt_of_another_tenant(self, scene, ask):
        scene.put(scene.root("tenant:bolt"), [*A, *B])
        scene.put(scene.root("tenant:acme"), C)
        found, text = ask([*A, *B, 1], "--expect", "scope=tenant:acme", scope=None)
        # Asked as a tenant, other tenants are not seen at all.
        assert (found["elsewhere"], found["advice"]) == ([], [])
        assert "bolt" not in text

    def test_the_same_prompt_of_another_tenant_as_an_operator_sees_it(self, scene, ask):
        scene.put(scene.root("tenant:bolt"), [*A, *B])
        scene.put(scene.root("tenant:acme", salt="s"), [*A, *C])
        found, text = ask([*A, *B, 1], "--expect", "salt=s", scope=None)
        # 8 tokens there, 4 here.
        assert advice_of(found) == [("share", 4)]
        assert "put the common prompt into a shared scope" in text

    def test_evicted(self, scene, ask):
        scene.put(scene.root(), [*A, *B, *C])
        scene.tree.evict(0, 2000, "least recently used")
        found, text = ask([*A, *B, *C, 1])
        assert advice_of(found) == [("keep", 8)]
        assert "pin the prompt with warm(..., pin=SECONDS), or give device more memory" in text

    def test_evicted_over_a_quota(self, scene, ask):
        scene.put(scene.root(), [*A, *B, *C])
        scene.tree.evict(0, 2000, "over its scope's quota")
        assert "raise the scope's quota" in ask([*A, *B, *C, 1])[1]

    def test_computing_and_too_short_need_none(self, scene, ask):
        root = scene.root()
        scene.put(root, A)
        tokens = [*A, *B]
        scene.tree.claim(scene.match(root, tokens), b"".join(t.to_bytes(4, "little") for t in tokens))
        assert ask([*tokens, 1])[0]["advice"] == []
        assert ask([1, 9])[0]["advice"] == []


def test_hint_about_special_tokens_comes_without_other_advice(scene, kvtrie, tokenizer_file):
    scene.put(scene.root(), list(range(1, 13)))
    text = " ".join(f"w{i}" for i in range(1, 14))
    out = kvtrie("explain", scene.file(), "--tokenizer", tokenizer_file, "--text", text).out
    assert "the same text has 12 cached tokens: pass --no-special-tokens" in out
    assert "advice" not in out
