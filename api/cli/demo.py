"""`kvtrie demo`: the main job, seen at work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrie.api.byte_size import SIZE_HELP
from kvtrie.api.cli.console import quoted, shortened, table, terminal_width, write
from kvtrie.api.cli.quantities import shown_bytes

if TYPE_CHECKING:
    from kvtrie.api.demo.run import DemoResult

HELP = "run several tenants' chat requests with the cache and without, compare, and show the tree"
EXAMPLES = (
    "kvtrie demo",
    "kvtrie demo --model DIR --max-new-tokens 16 --memory 2G",
    "kvtrie demo --snapshot tree.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--input", type=Path, metavar="FILE.jsonl", help='lines of {"tenant","system","user"}'
    )
    parser.add_argument(
        "--per-tenant", type=int, metavar="N", help="only the first N requests of each tenant"
    )
    parser.add_argument(
        "--model",
        metavar="DIR_OR_ID",
        help="a directory, .gguf file, hub id or smollm2; default: a small random Llama made on the spot",
    )
    parser.add_argument("--store", metavar="URL", help="lower tier: redis://..., http://... or unix:///...")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help=f"KV pool: {SIZE_HELP} (default: %(default)s)"
    )
    parser.add_argument("--chunk-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--snapshot", type=Path, metavar="FILE", help="also write the tree, for kvtrie dump")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Runs the demo; 1 if any output differs from the uncached model's."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Bars of other packages; the demo has its own.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from kvtrie.api.demo.model import demo_model, random_llama
    from kvtrie.api.demo.requests import first_of_each_tenant, read_requests, shipped_requests
    from kvtrie.api.demo.run import run_demo
    from kvtrie.api.huggingface.cached_model import PrefixCachedModel

    requests = shipped_requests() if args.input is None else read_requests(args.input)
    if args.per_tenant is not None:
        requests = first_of_each_tenant(requests, args.per_tenant)
    progress = _Progress(len(requests))
    progress.say("loading model and tokenizer")
    demo = random_llama() if args.model is None else demo_model(args.model)
    with PrefixCachedModel(
        demo.model, memory=args.memory, chunk_tokens=args.chunk_tokens, store=args.store
    ) as cached:
        result = run_demo(demo, cached, requests, args.max_new_tokens, progress.advance)
        progress.done()
        snapshot = cached.take_snapshot()
        if args.snapshot is not None:
            cached.snapshot(args.snapshot)
    if args.format == "json":
        write(json.dumps(result.document()))
    else:
        from kvtrie.api.cli.tree_text import tree_text

        write(_report(result))
        write("")
        if args.model is not None and any(request.answer for request in result.requests):
            write(_answers(result))
            write("")
        write(tree_text(snapshot, snapshot, tokenizer=demo.tokenizer, columns=terminal_width()))
    return 0 if result.identical else 1


def _report(result: DemoResult) -> str:
    rows = [
        ("tenant", "requests", "prompt", "cached", "TTFT 1st", "TTFT", "uncached", "speed-up", "identical")
    ]
    for tenant in result.tenants:
        rows.append(
            (
                tenant.tenant,
                str(tenant.requests),
                str(tenant.prompt_tokens),
                str(tenant.cached_tokens),
                f"{tenant.first_ttft_seconds * 1e3:.0f} ms",
                f"{tenant.ttft_seconds * 1e3:.0f} ms",
                f"{tenant.ttft_uncached_seconds * 1e3:.0f} ms",
                f"{tenant.speedup:.1f}x",
                "yes" if tenant.identical else "NO",
            )
        )
    prompt = sum(tenant.prompt_tokens for tenant in result.tenants)
    cached = sum(tenant.cached_tokens for tenant in result.tenants)
    return "\n".join(
        [
            result.model,
            "",
            table(rows),
            "",
            "TTFT: median time to first token of each tenant's requests after its first",
            f"tokens: {cached:,} of {prompt:,} prompt tokens served from the cache ({cached / prompt:.0%})",
            f"memory: {shown_bytes(result.kv_bytes)} of KV, {shown_bytes(result.unshared_kv_bytes)} unshared "
            f"({result.unshared_kv_bytes / max(1, result.kv_bytes):.1f}x)",
        ]
    )


def _answers(result: DemoResult) -> str:
    rows = [("tenant", "cached", "TTFT", "uncached", "answer")]
    for request in result.requests:
        lines = request.answer.strip().splitlines() or [""]
        rows.append(
            (
                request.tenant,
                str(request.cached_tokens),
                f"{request.ttft_seconds * 1e3:.0f} ms",
                f"{request.ttft_uncached_seconds * 1e3:.0f} ms",
                quoted(shortened(lines[0], 72)),
            )
        )
    return table(rows)


class _Progress:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._count = 0
        self._shown = sys.stderr.isatty()

    def say(self, text: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def advance(self, tenant: str) -> None:
        self._count += 1
        filled = 30 * self._count // self._total
        self.say(f"[{'#' * filled}{'.' * (30 - filled)}] {self._count}/{self._total}")

    def done(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
