"""What a user knows of the namespace a request computes in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields

from kvtrie.api.cli.snapshot_source import named, read_input
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.namespace import Namespace, namespace_fields
from kvtrie.prefix_tree.read_json import read_json

FieldValue = str | int
_REMEDY = "take one namespace's `fields` from kvtrie dump --format json"
_FIELDS = tuple(f.name for f in fields(Namespace))


def read_expected(namespace_json: str | None, pairs: Sequence[str]) -> dict[str, FieldValue]:
    """Fields from a namespace document, then from `field=value` pairs; a salt becomes what dumps show of it.

    Raises:
        InputError: the document is not one of a namespace, a pair is malformed, or its field is unknown.
    """
    expected: dict[str, FieldValue] = {}
    if namespace_json is not None:
        expected.update(_document(namespace_json))
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in _FIELDS:
            raise InputError(f"--expect {pair!a} is not FIELD=VALUE with a field of {', '.join(_FIELDS)}")
        expected[name] = _chunk_tokens(text) if name == "chunk_tokens" else text
    if salt := str(expected.get("salt", "")):
        expected["salt"] = _shown_salt(salt)
    return expected


def _document(name: str) -> dict[str, FieldValue]:
    text = read_input(name)
    try:
        document = read_json(text)
    except InputError as error:
        raise InputError(f"--namespace-json {named(name)} {error}; {_REMEDY}") from None
    if not isinstance(document, dict):
        raise InputError(f"--namespace-json {named(name)} is no JSON object; {_REMEDY}")
    try:
        found = namespace_fields(document)
    except InputError as error:
        raise InputError(f"--namespace-json {named(name)}: {error}; {_REMEDY}") from None
    if int(found["chunk_tokens"]) < 1:
        raise InputError(f"--namespace-json {named(name)}: chunk_tokens must be at least 1")
    return found


def _chunk_tokens(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise InputError(f"--expect chunk_tokens must be a number from 1, got {text!a}")
    return int(text)


def _shown_salt(salt: str) -> str:
    if salt.startswith("sha256:"):
        return salt
    return "sha256:" + hashlib.sha256(salt.encode("utf-8", "surrogateescape")).hexdigest()[:16]
