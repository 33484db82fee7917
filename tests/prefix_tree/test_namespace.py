"""The namespace: complete, unambiguous, and silent about its salt."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace

import pytest

from kvtrie.prefix_tree import InputError, Namespace
from kvtrie.prefix_tree.namespace import namespace_fields

NAMES = [field.name for field in fields(Namespace)]
TEXTS = [name for name in NAMES if name != "chunk_tokens"]
BASE = Namespace(**{name: f"value of {name}" for name in TEXTS}, chunk_tokens=64)
SALT = "s3cret-salt"


def test_identity_has_every_field_of_the_design() -> None:
    assert NAMES == [
        "scope", "salt", "model_config", "weights", "revision", "adapter", "kv_dtype", "layout",
        "chunk_tokens", "fidelity",
    ]  # fmt: skip


def test_the_digest_is_32_bytes_and_depends_on_values_alone() -> None:
    assert len(BASE.digest) == 32
    assert replace(BASE).digest == BASE.digest


def test_the_digest_is_stable_over_versions() -> None:
    """Records on disk and in Redis are found by it: a change here orphans all of them."""
    assert Namespace("tenant:a").digest.hex() == (
        "e93a48199798d814a6602c28bfba2cc10f8d1c9493dc4364fcc12d0f6293fbc9"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_field_changes_the_digest(name: str) -> None:
    changed = replace(BASE, **{name: 65 if name == "chunk_tokens" else "other"})
    assert changed.digest != BASE.digest
    assert changed.differences(BASE) == [name]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(TEXTS, 2)))
def test_no_two_fields_can_trade_places(one: str, other: str) -> None:
    swapped = replace(BASE, **{one: getattr(BASE, other), other: getattr(BASE, one)})
    assert swapped.digest != BASE.digest
    empty = dict.fromkeys(TEXTS, "")
    assert Namespace(**{**empty, one: "x"}).digest != Namespace(**{**empty, other: "x"}).digest


@pytest.mark.parametrize(("one", "other"), list(itertools.pairwise(TEXTS)))
def test_no_text_can_move_from_one_field_to_the_next(one: str, other: str) -> None:
    """Nor can a value imitate the tags that stand between fields."""
    digests = {
        replace(BASE, **{one: "xy", other: ""}).digest,
        replace(BASE, **{one: "x", other: "y"}).digest,
        replace(BASE, **{one: "", other: "xy"}).digest,
        replace(BASE, **{one: f"x{other}\0y", other: ""}).digest,
        replace(BASE, **{one: "x", other: f"y{other}\0"}).digest,
    }
    assert len(digests) == 5


def test_differences_are_named_in_order() -> None:
    assert BASE.differences(BASE) == []
    other = replace(BASE, fidelity="int8", scope="tenant:b", chunk_tokens=16)
    assert BASE.differences(other) == ["scope", "chunk_tokens", "fidelity"]


def test_the_salt_is_never_shown() -> None:
    secret = replace(BASE, salt=SALT)
    assert SALT not in json.dumps(secret.public_fields())
    assert SALT not in secret.to_json()
    assert SALT not in repr(secret)
    assert SALT not in str(secret)


def test_salts_can_be_told_apart_without_being_shown() -> None:
    shown = replace(BASE, salt=SALT).public_fields()["salt"]
    assert str(shown).startswith("sha256:")
    assert shown != replace(BASE, salt="other").public_fields()["salt"]
    assert shown == replace(BASE, salt=SALT).public_fields()["salt"]
    assert replace(BASE, salt="").public_fields()["salt"] == ""


def test_json_is_canonical_and_complete() -> None:
    document = json.loads(BASE.to_json())
    assert list(document) == sorted(NAMES)
    assert namespace_fields(document) == BASE.public_fields()
    assert {name: document[name] for name in NAMES if name != "salt"} == {
        name: getattr(BASE, name) for name in NAMES if name != "salt"
    }
    assert " :" not in BASE.to_json()


def test_a_namespace_cannot_change() -> None:
    with pytest.raises(AttributeError):
        BASE.scope = "tenant:b"  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_a_document_without_a_field_is_refused(name: str) -> None:
    document = {**BASE.public_fields()}
    del document[name]
    with pytest.raises(InputError, match="namespace document has fields"):
        namespace_fields(document)


def test_a_document_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="extra"):
        namespace_fields({**BASE.public_fields(), "extra": ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [("scope", 5), ("scope", None), ("chunk_tokens", "64"), ("chunk_tokens", 64.0), ("chunk_tokens", True)],
)
def test_a_field_of_the_wrong_type_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"namespace field {name} is"):
        namespace_fields({**BASE.public_fields(), name: value})
