"""`kvtrie dump`: the tree, as text, JSON or DOT."""

from __future__ import annotations

import argparse

from kvtrie.api.cli.console import terminal_width, write
from kvtrie.api.cli.explanation_text import unknown_scope_text
from kvtrie.api.cli.scope_name import tenant_scope
from kvtrie.api.cli.snapshot_source import add_source_arguments, read_snapshot
from kvtrie.api.cli.tree_dot import tree_dot
from kvtrie.api.cli.tree_text import tree_text
from kvtrie.api.inspection.snapshot_filter import only_depth, only_hottest, only_scope
from kvtrie.api.inspection.unknown_scope import unknown_scope
from kvtrie.api.tokenizer import TOKENIZER_HELP, open_tokenizer
from kvtrie.prefix_tree.errors import InputError

HELP = "show the tree: who shares which chunks, where they are, what is pinned or being computed"
EXAMPLES = (
    "kvtrie dump tree.json --tokenizer tekken",
    "kvtrie dump tree.json --scope acme --top 10",
    "kvtrie dump --url http://127.0.0.1:7070 --depth 3",
    "kvtrie dump tree.json --format dot | dot -Tsvg -o tree.svg",
    "kvtrie dump tree.json | less -S",
)
SMALLEST_WIDTH = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `dump`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--format", choices=("text", "json", "dot"), default="text", help="default: %(default)s"
    )
    parser.add_argument("--tokenizer", metavar="NAME", help=f"show tokens as text: {TOKENIZER_HELP}")
    parser.add_argument("--scope", metavar="NAME", help="only this scope: tenant:acme, acme, shared:tools")
    parser.add_argument("--depth", metavar="N", type=int, help="only the first N chunks of every path")
    parser.add_argument("--top", metavar="N", type=int, help="only the N paths on which most hits ended")
    parser.add_argument("--expand", action="store_true", help="one line per chunk, runs are not folded")
    parser.add_argument(
        "--width",
        metavar="N",
        type=int,
        help="cut lines at N columns (default: at the terminal's; whole lines into a file or a pipe)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the tree."""
    for option in ("depth", "top"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} must be at least 1, got {value}")
    if args.width is not None and args.width < SMALLEST_WIDTH:
        raise InputError(f"--width must be at least {SMALLEST_WIDTH}, got {args.width}")
    whole = read_snapshot(args)
    if args.scope is not None:
        # The rest is out of sight from here on: counts of what is not shown must not tell of it.
        scope = tenant_scope(whole, args.scope)
        unknown = unknown_scope(whole, scope)
        whole = only_scope(whole, scope)
    else:
        unknown = None
    shown = whole
    if args.top is not None:
        shown = only_hottest(shown, args.top)
    if args.depth is not None:
        shown = only_depth(shown, args.depth)
    if args.format == "json":
        write(shown.to_json())
        return 0
    tokenizer = None if args.tokenizer is None else open_tokenizer(args.tokenizer)
    if args.format == "dot":
        write(tree_dot(shown, tokenizer=tokenizer, expand=args.expand))
    else:
        columns = terminal_width() if args.width is None else args.width
        write(tree_text(shown, whole, tokenizer=tokenizer, expand=args.expand, columns=columns))
        if unknown is not None:
            write(unknown_scope_text(unknown))
    return 0
