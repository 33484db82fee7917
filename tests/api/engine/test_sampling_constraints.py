"""Constraints: whatever a random model says, its text is valid; what cannot be enforced is refused first."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kvtrie.api import Completion, PrefixCachedModel, Request, Sampling
from kvtrie.api.engine.sampling.constraint import JsonSchema, Regex
from kvtrie.prefix_tree import InputError
from tests.api.balance import run_to_the_end, wrapped
from tests.api.lower_tiers import small_model
from tests.api.tokenizers_of_each_kind import KINDS

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    {"enum": ["yes", "no", None, 12]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {"leaf": {"type": "string", "pattern": "^[a-f]{2,5}$"}},
        "type": "object",
        "properties": {
            "a": {"$ref": "#/$defs/leaf"},
            "b": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
]
FAST = [kind for kind in KINDS if kind in ("byte_level", "sentencepiece_bpe")]
NEW = 150


@pytest.fixture(scope="module", params=FAST)
def cached(request: pytest.FixtureRequest) -> Iterator[PrefixCachedModel]:
    """The model has more logits than its tokenizer has tokens, as padded heads have."""
    tokenizer = KINDS[request.param]()
    with wrapped(small_model(vocabulary=len(tokenizer) + 37), chunks=400, tokenizer=tokenizer) as wrapper:
        yield wrapper


def answers(
    cached: PrefixCachedModel, constraint: JsonSchema | Regex, count: int = 6, **setting: Any
) -> list[Completion]:
    """Completions of one prompt that met their constraint, by seed."""
    found = [
        cached.submit(
            "The quick brown fox",
            max_new_tokens=NEW,
            eos={cached.tokenizer.eos_token_id},
            sampling=Sampling(**{"temperature": 1.0, "seed": seed, **setting}, constraint=constraint),
        )
        for seed in range(count)
    ]
    run_to_the_end(cached)
    for one in found:
        assert one.error is None
        assert one.finish_reason == "stop"
    return found


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.0}, {"top_p": 0.9, "repetition_penalty": 1.2}], ids=str
)
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_all_answers_are_valid(
    cached: PrefixCachedModel, schema: dict[str, Any], setting: dict[str, Any]
) -> None:
    for one in answers(cached, JsonSchema(schema, whitespace=False), **setting):
        jsonschema.validate(json.loads(one.text), schema)


def test_answers_with_whitespace_that_are_not_cut_off_are_valid(cached: PrefixCachedModel) -> None:
    """A random model may write blanks for ever."""
    schema, found = SCHEMAS[2], []
    for seed in range(12):
        sampling = Sampling(temperature=1.0, seed=seed, constraint=JsonSchema(schema))
        eos = {cached.tokenizer.eos_token_id}
        found.append(cached.submit("The", max_new_tokens=NEW, eos=eos, sampling=sampling))
    run_to_the_end(cached)
    whole = [one for one in found if one.finish_reason == "stop"]
    assert whole
    for one in whole:
        jsonschema.validate(json.loads(one.text), schema)


@pytest.mark.parametrize("pattern", ["[0-9]{4}-[0-9]{2}", "(yes|no), (quick|brown) fox", "a{1,9}b?"])
def test_all_answers_match(cached: PrefixCachedModel, pattern: str) -> None:
    texts = [one.text for one in answers(cached, Regex(pattern))]
    # Tokenizers of words put a space before the first one.
    assert all(re.fullmatch(pattern, text.strip()) for text in texts), texts


def test_a_request_ends_with_the_token_after_which_nothing_may_follow(cached: PrefixCachedModel) -> None:
    for one in answers(cached, Regex("[0-9]{3}")):
        assert cached.tokenizer.eos_token_id not in one.tokens
        assert one.stopped_by is None


def test_the_constraint_s_state_survives_preemption(cached: PrefixCachedModel) -> None:
    constraint = JsonSchema(SCHEMAS[0], whitespace=False)
    expected = answers(cached, constraint, count=1)[0]
    sampling = Sampling(temperature=1.0, seed=0, constraint=constraint)
    eos = {cached.tokenizer.eos_token_id}
    found = cached.submit("The quick brown fox", max_new_tokens=NEW, eos=eos, sampling=sampling)
    while not found.done:
        cached.engine.step()
        cached.engine._make_way()
    assert found.preemptions > len(expected.tokens) // 2
    assert found.tokens == expected.tokens


def test_constrained_and_free_requests_in_one_batch(cached: PrefixCachedModel) -> None:
    free = Sampling(temperature=1.0, seed=4)
    alone = cached.submit("The quick", max_new_tokens=20, eos=(), sampling=free)
    run_to_the_end(cached)
    beside = cached.submit("The quick", max_new_tokens=20, eos=(), sampling=free)
    answers(cached, Regex("[0-9]{3}"))
    assert beside.tokens == alone.tokens


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JsonSchema("{"), "the JSON schema is no JSON: "),
        (lambda: JsonSchema("[]"), "a JSON schema must be an object, got []"),
        (lambda: JsonSchema(5), "the JSON schema is no JSON: "),
        (lambda: JsonSchema({"a": {1, 2}}), "the JSON schema is no JSON: "),
        (lambda: JsonSchema({"type": "nothing"}), "the JSON schema cannot be enforced: "),
        (lambda: JsonSchema({"$ref": "#/$defs/missing"}), "the JSON schema cannot be enforced: "),
        (lambda: JsonSchema({}, whitespace=1), "whitespace must be True or False, got 1"),
        (lambda: Regex("(ab"), "the regular expression cannot be enforced: "),
        (lambda: Regex(5), "a regular expression must be a string, got 5"),
    ],
)
def test_what_cannot_be_enforced_is_no_constraint(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as raised:
        make()
    assert len(str(raised.value)) > len(says) - 1
    assert "\n" not in str(raised.value)


def test_a_schema_is_kept_as_text() -> None:
    schema = {"type": "array", "items": {"type": "null"}}
    constraint = JsonSchema(schema)
    schema["type"] = "object"
    assert json.loads(constraint.schema)["type"] == "array"  # type: ignore[arg-type]
    assert hash(Sampling(constraint=constraint)) == hash(Sampling(constraint=JsonSchema(constraint.schema)))


@pytest.mark.parametrize("setting", [{"ignore_eos": True}, {"min_tokens": 3}], ids=str)
def test_a_constraint_decides_the_end(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="leave out ignore_eos and min_tokens"):
        Sampling(constraint=Regex("a"), **setting)


def test_requests_that_cannot_be_constrained_are_refused_at_once(cached: PrefixCachedModel) -> None:
    sampling, root = Sampling(constraint=Regex("a")), cached._roots(None)[0]
    with pytest.raises(InputError, match="a constraint needs a tokenizer; pass one"):
        Request([5], root, sampling=sampling)
    with pytest.raises(InputError, match="needs a token that ends the completion; pass eos="):
        cached.submit("The", eos=(), sampling=sampling)

    class Slow:
        def decode(self, tokens: list[int]) -> str:
            return ""

    with pytest.raises(InputError, match="a constraint needs a fast tokenizer of transformers, got Slow"):
        cached.engine.submit(Request([5], root, eos={2}, sampling=sampling, tokenizer=Slow()))
    assert cached.engine.idle


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "llguidance":
            raise ModuleNotFoundError("No module named 'llguidance'", name="llguidance")
        return given(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape("needs llguidance: pip install 'kvtrie[all]'")):
        Regex("a")
    assert Sampling().constraint is None
