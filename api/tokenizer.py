"""Tokenizers of the CLI, by the name that the user gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kvtrie.api.hub_names import is_held_here_alone
from kvtrie.api.smollm2 import is_smollm2, need_gguf, smollm2_file
from kvtrie.prefix_tree.errors import InputError

TOKENIZER_HELP = (
    "directory, tokenizer.json, tekken.json, .gguf file, Hugging Face id, "
    "`tekken` (mistral-common's), or `smollm2`"
)
_TEKKEN_FILE = "tekken_240911.json"


class Tokenizer(Protocol):
    """A tokenizer, as the CLI uses one."""

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Token ids of `text`, with or without the special tokens that a prompt gets by default.

        A text that begins with the first of these was rendered by a chat template, and gets none in any case.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones included. Ids that the vocabulary lacks become `<id>`."""


def open_tokenizer(name: str) -> Tokenizer:
    """Opens a tokenizer by its name: see `TOKENIZER_HELP`.

    Raises:
        InputError: there is none of that name, or it cannot be read.
        ImportError: the package it needs is not installed.
        PackageMissing: the same, of a package that is no dependency of kvtrie.
    """
    path = smollm2_file() if is_smollm2(name) else Path(name)
    if name == "tekken" and not path.exists():
        return _Tekken(_shipped_tekken())
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _HuggingFaceFile(path / "tokenizer.json")
        tekken = next(
            (path / file for file in ("tekken.json", _TEKKEN_FILE) if (path / file).is_file()), None
        )
        return _Tekken(tekken) if tekken is not None else _HuggingFaceModel(name)
    if path.suffix == ".gguf" and path.is_file():
        need_gguf(path)
        return _HuggingFaceModel(str(path.parent), gguf_file=path.name)
    if path.is_file():
        return _Tekken(path) if path.name.startswith("tekken") else _HuggingFaceFile(path)
    return _HuggingFaceModel(name)


def _shipped_tekken() -> Path:
    # Found without importing: mistral_common itself takes a second.
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        raise ImportError("--tokenizer tekken needs mistral-common")
    return Path(spec.origin).parent / "data" / _TEKKEN_FILE


def tokenizer_of_transformers(tokenizer: Any) -> Tokenizer:
    """One of transformers' own, already loaded, as the CLI uses it."""
    return _OfTransformers(tokenizer)


def _unusable(name: object, error: Exception) -> InputError:
    return InputError(f"cannot use tokenizer {str(name)!a}: {ascii(str(error))[1:-1][:200]}")


class _Tekken:
    def __init__(self, path: Path) -> None:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        try:
            self._tekken: Any = Tekkenizer.from_file(path)
        # The libraries raise what they please on a bad file, `Exception` itself included.
        except Exception as error:
            raise _unusable(path, error) from None
        self._keep = SpecialTokenPolicy.KEEP

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return list(self._tekken.encode(text, bos=special_tokens, eos=False))

    def decode(self, tokens: Sequence[int]) -> str:
        size = int(self._tekken.n_words)
        return _decode_known(
            tokens, lambda token: token < size, lambda known: str(self._tekken.decode(known, self._keep))
        )


class _HuggingFaceFile:
    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise _unusable(path, error) from None
        # A file may carry limits for training batches; a prompt is never cut or padded here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        plain = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        full = list(self._tokenizer.encode(text).ids) if special_tokens else plain
        return plain if _begins_twice(plain, full) else full

    def decode(self, tokens: Sequence[int]) -> str:
        # Not by the vocabulary's size: it may have holes, and ids beyond its size.
        return _decode_known(
            tokens,
            lambda token: self._tokenizer.id_to_token(token) is not None,
            lambda known: str(self._tokenizer.decode(known, skip_special_tokens=False)),
        )


class _OfTransformers:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        plain = list(self._tokenizer.encode(text, add_special_tokens=False))
        full = list(self._tokenizer.encode(text)) if special_tokens else plain
        return plain if _begins_twice(plain, full) else full

    def decode(self, tokens: Sequence[int]) -> str:
        return _decode_known(
            tokens,
            self._is_known,
            lambda known: str(self._tokenizer.decode(known, skip_special_tokens=False)),
        )

    def _is_known(self, token: int) -> bool:
        try:
            return self._tokenizer.convert_ids_to_tokens(token) is not None
        # Tokenizers without a Rust backend raise what they please for an id they lack.
        except Exception:
            return False


class _HuggingFaceModel(_OfTransformers):
    def __init__(self, name: str, **options: str) -> None:
        # Before transformers is imported, which takes seconds.
        here_alone = Path(name).is_dir() or is_held_here_alone(
            name, "tokenizer", built_in=["tekken", "smollm2"]
        )
        import transformers

        transformers.logging.set_verbosity_error()
        try:
            # trust_remote_code stays off: a tokenizer must not run code.
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, trust_remote_code=False, local_files_only=here_alone, **options
            )
        except Exception as error:
            raise _unusable(name, error) from None
        super().__init__(tokenizer)


def _begins_twice(plain: list[int], full: list[int]) -> bool:
    """Whether special tokens put before `plain` gave `full` a second one of those it begins with already."""
    return bool(plain) and full[:1] == plain[:1] and full[1 : len(plain) + 1] == plain


def _decode_known(
    tokens: Sequence[int], is_known: Callable[[int], bool], decode: Callable[[list[int]], str]
) -> str:
    parts: list[str] = []
    known: list[int] = []
    for token in tokens:
        if is_known(token):
            known.append(token)
            continue
        if known:
            parts.append(decode(known))
            known = []
        parts.append(f"<{token}>")
    if known:
        parts.append(decode(known))
    return "".join(parts)
