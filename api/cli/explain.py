"""`kvtrie explain`: why a prompt missed, or how much of it hit."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from typing import Any

from kvtrie.api.cli.console import terminal_width, write
from kvtrie.api.cli.expected_fields import read_expected
from kvtrie.api.cli.explanation_text import explanation_text
from kvtrie.api.cli.prompt_tokens import Prompt, add_prompt_arguments, read_prompt
from kvtrie.api.cli.scope_name import shared_scope, tenant_scope
from kvtrie.api.cli.snapshot_source import add_source_arguments, read_snapshot
from kvtrie.api.inspection.explain import explain
from kvtrie.api.inspection.explanation import VERDICTS, Explanation, Question
from kvtrie.prefix_tree.errors import InputError

HELP = "say why a prompt missed the cache, or how much of it hit"
EXAMPLES = (
    "kvtrie explain tree.json --scope acme --text-file prompt.txt --tokenizer tekken",
    "kvtrie explain tree.json --scope acme --tokens @ids.json --prefill-rate 700",
    "kvtrie explain --url http://127.0.0.1:7070 --tokens 1,2,3 --expect kv_dtype=bfloat16",
)
FORMAT = "kvtrie-explanation"
VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `explain`."""
    add_source_arguments(parser)
    add_prompt_arguments(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")
    parser.add_argument("--scope", metavar="NAME", help="whose request it is: tenant:acme, or acme")
    parser.add_argument(
        "--shared", metavar="NAME", action="append", default=[], help="a shared scope it may read; repeatable"
    )
    parser.add_argument(
        "--namespace-json", metavar="FILE", help="the request's namespace, as in a JSON dump's `fields`"
    )
    parser.add_argument(
        "--expect",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="one field of the request's namespace, e.g. kv_dtype=bfloat16; repeatable",
    )
    parser.add_argument(
        "--prefill-rate",
        metavar="TOKENS/S",
        help="prompt tokens that the model computes in a second: then the miss is told in time, too",
    )
    parser.epilog = "verdicts:\n" + "\n".join(f"  {name}: {meaning}" for name, meaning in VERDICTS.items())


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    rate = None if args.prefill_rate is None else _rate(args.prefill_rate)
    prompt = read_prompt(args)
    expected = read_expected(args.namespace_json, args.expect)
    snapshot = read_snapshot(args)
    scope = None if args.scope is None else tenant_scope(snapshot, args.scope)
    named = expected.pop("scope", None)
    if scope is not None and named is not None and scope != named:
        raise InputError(f"--scope is {scope!a}, but the expected namespace has scope {named!a}")
    question = Question(
        scope=scope if scope is not None or named is None else str(named),
        shared_scopes=[shared_scope(snapshot, name) for name in args.shared],
        expected=expected,
        prefill_tokens_per_second=rate,
    )
    found = explain(snapshot, prompt.tokens, question)
    hint = None
    if prompt.otherwise is not None:
        other = explain(snapshot, prompt.otherwise, question)
        if other.cached_tokens > found.cached_tokens:
            hint = _special_token_hint(other.cached_tokens, args.no_special_tokens)
            # The divergence is that of the special tokens; what else may differ shows without them.
            found = replace(found, advice=[])
    if args.format == "json":
        write(json.dumps(_document(found, prompt, hint)))
    else:
        write(explanation_text(found, prompt.tokenizer, hint, terminal_width()))
    return 0


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise InputError(f"--prefill-rate {text!a} is no number of tokens a second, like 700")
    return rate


def _special_token_hint(cached_tokens: int, without: bool) -> str:
    how = "with the tokenizer's special tokens" if without else "without special tokens"
    what = "leave out" if without else "pass"
    return f"{how} the same text has {cached_tokens:,} cached tokens: {what} --no-special-tokens"


def _document(found: Explanation, prompt: Prompt, hint: str | None) -> dict[str, Any]:
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(found), "hint": hint}
    document["meaning"] = VERDICTS[found.verdict]
    if found.divergence is not None and prompt.tokenizer is not None:
        for name in ("before", "prompt", "stored"):
            tokens = getattr(found.divergence, name)
            document["divergence"][f"{name}_text"] = prompt.tokenizer.decode(tokens)
    return document
