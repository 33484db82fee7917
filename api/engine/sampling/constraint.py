"""What a completion's text may be told to match.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance), compared with xgrammar:

| | llguidance 1.9.1 | xgrammar 0.2.8 |
| --- | --- | --- |
| licence | MIT | Apache 2.0 |
| installed | 8 MB, no dependencies | 17 MB, needs torch, transformers, pydantic, apache-tvm-ffi |
| a schema of 6 fields, compiled for 131,072 tokens | 0.5 ms | 2.9 s |
| a token's mask, median, 90 %, most | 5, 60, 3,800 us | 3, 180, 16,000 us |
| tokenizers | Hugging Face's fast ones, tiktoken; others by their bytes | the same, and sentencepiece models |
| regular expressions, JSON schema | both, compiled lazily | both |

Both were measured on one core of one machine, alone, with Mistral's Tekken vocabulary. xgrammar works ahead: a
schema that was seen before costs it nothing, a new one would hold up a server's other requests for seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kvtrie.prefix_tree.errors import InputError


def llguidance() -> ModuleType:
    """The library of grammars.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import llguidance as library
    except ModuleNotFoundError as error:
        raise ImportError(
            "a constraint (JsonSchema, Regex) needs llguidance: pip install 'kvtrie[all]'", name="llguidance"
        ) from error
    module: ModuleType = library
    return module


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The completion is JSON that a schema admits.

    Raises:
        InputError: the schema is no JSON object, or has keywords that cannot be enforced; with the reason.
        ImportError: llguidance is missing.
    """

    schema: str | Mapping[str, Any]
    """JSON Schema, as JSON text or as what `json.loads` makes of it. Kept as text."""
    whitespace: bool = True
    """Whether the completion may have whitespace between its parts, as much as it likes. Without, it is
    shorter, and a small model cannot lose itself in blanks."""

    def __post_init__(self) -> None:
        if not isinstance(self.whitespace, bool):
            raise InputError(f"whitespace must be True or False, got {self.whitespace!r}")
        try:
            parsed = json.loads(self.schema) if isinstance(self.schema, str) else dict(self.schema)
            text = json.dumps(parsed)
        except (TypeError, ValueError) as error:
            raise InputError(f"the JSON schema is no JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise InputError(f"a JSON schema must be an object, got {text[:80]}")
        object.__setattr__(self, "schema", text)
        _check("JSON schema", self.grammar())

    def grammar(self) -> str:
        """In llguidance's own format."""
        options = {"whitespace_flexible": self.whitespace}
        return str(llguidance().LLMatcher.grammar_from_json_schema(self.schema, defaults=options))


@dataclass(frozen=True, slots=True)
class Regex:
    """The completion, all of it, matches a regular expression of Rust's `regex` syntax, without anchors.

    Raises:
        InputError: the expression does not compile; with the reason.
        ImportError: llguidance is missing.
    """

    pattern: str
    """E.g. `[0-9]{4}-[0-9]{2}`. Has no lookaround and no references to groups."""

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise InputError(f"a regular expression must be a string, got {self.pattern!r}")
        _check("regular expression", self.grammar())

    def grammar(self) -> str:
        """In llguidance's own format."""
        return str(llguidance().LLMatcher.grammar_from_regex(self.pattern))


def _check(what: str, grammar: str) -> None:
    is_error, messages = llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error:
        raise InputError(f"the {what} cannot be enforced: {first_sentence(messages[0])}")


def first_sentence(message: str) -> str:
    """The reason in a message of llguidance's, without the state and the grammar that follow it."""
    return re.split(r"\n\s*<|\n\n", message.strip(), maxsplit=1)[0].replace("\n", " ")
