"""The prompt that `explain` is asked about: text for a tokenizer, or token ids."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from kvtrie.api.cli.snapshot_source import read_input
from kvtrie.api.tokenizer import TOKENIZER_HELP, Tokenizer, open_tokenizer
from kvtrie.prefix_tree.errors import InputError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and what it takes to show it."""

    tokens: list[int]
    tokenizer: Tokenizer | None
    otherwise: list[int] | None
    """The same text with special tokens where `tokens` has none, and the other way round."""


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, in exactly one of three forms."""
    prompt = parser.add_argument_group("prompt, exactly one of")
    prompt.add_argument("--text", help="the prompt itself (needs --tokenizer)")
    prompt.add_argument("--text-file", metavar="FILE", help="a UTF-8 file; - for standard input")
    prompt.add_argument("--tokens", metavar="IDS", help="token ids 1,2,3, or @FILE of them; @- for stdin")
    parser.add_argument("--tokenizer", metavar="NAME", help=TOKENIZER_HELP)
    parser.add_argument(
        "--no-special-tokens",
        action="store_true",
        help="the text is tokenized without the tokenizer's special tokens, such as a beginning-of-sequence",
    )


def read_prompt(args: argparse.Namespace) -> Prompt:
    """The prompt that the arguments name.

    Raises:
        InputError: none or several, text without a tokenizer, or what is no list of token ids.
        ImportError: the tokenizer's package is not installed.
    """
    # 1. Exactly one prompt, and a tokenizer where it needs one.
    given = [name for name in ("text", "text_file", "tokens") if getattr(args, name) is not None]
    if len(given) != 1:
        raise InputError("give the prompt as exactly one of --text, --text-file and --tokens")
    if args.file == "-" and (args.text_file == "-" or args.tokens == "@-"):
        raise InputError("standard input cannot be both the snapshot and the prompt")
    if args.tokenizer is None and args.tokens is None:
        raise InputError("text needs --tokenizer NAME, the tokenizer of the model; or pass --tokens")
    # 2. Its tokens; of a text also those with, or without, special tokens: for a hint.
    tokenizer = None if args.tokenizer is None else open_tokenizer(args.tokenizer)
    if args.tokens is not None:
        tokens, otherwise = _parse_tokens(args.tokens), None
    else:
        assert tokenizer is not None
        text = args.text if args.text is not None else _read_text(args.text_file)
        tokens = tokenizer.encode(text, not args.no_special_tokens)
        otherwise = tokenizer.encode(text, args.no_special_tokens)
    if not tokens:
        raise InputError("the prompt has no tokens")
    return Prompt(tokens, tokenizer, otherwise if otherwise != tokens else None)


def _read_text(name: str) -> str:
    try:
        return read_input(name).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name!a} is not UTF-8 text: byte {error.start}") from None


def _parse_tokens(argument: str) -> list[int]:
    source = argument
    if argument.startswith("@"):
        try:
            source = read_input(argument[1:]).decode("ascii")
        except UnicodeDecodeError:
            raise InputError(f"{argument[1:]!a} is no list of token ids") from None
    # Brackets of a JSON list are fine too.
    words = re.split(r"[\s,]+", source.strip().removeprefix("[").removesuffix("]").strip(" ,\t\r\n"))
    for word in words:
        if not re.fullmatch("[0-9]{1,10}", word):
            raise InputError(f"{word[:40]!a} in --tokens is no token id; write 1,2,3 or @FILE")
    return [int(word) for word in words]
