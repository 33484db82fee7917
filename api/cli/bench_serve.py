"""`kvtrie bench serve`: drives any server of OpenAI's API, and measures it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from kvtrie.api.cli.console import escaped, write
from kvtrie.api.load.arrivals import constant, poisson, traced
from kvtrie.api.load.plan import ENDPOINTS, LoadPlan, RequestForm
from kvtrie.api.load.prompt import LoadPrompt, in_token_ids
from kvtrie.api.load.workload_files import WorkloadFiles
from kvtrie.api.load.workloads import WORKLOADS, WorkloadConfig, make_workload
from kvtrie.api.tokenizer import TOKENIZER_HELP, open_tokenizer
from kvtrie.prefix_tree.errors import InputError

HELP = "send the same requests, at the same times, to any server of OpenAI's API, and measure its answers"

EXAMPLES = (
    "kvtrie bench serve --url http://127.0.0.1:8000 --rate 4 --tenants 4",
    "kvtrie bench serve --url http://127.0.0.1:8000 --workload chats --data data --concurrency 8",
    "kvtrie bench serve --url http://127.0.0.1:8000 --arrivals trace --trace azure2023_conv.csv.gz --rate 2",
)

ARRIVALS = ("poisson", "constant", "trace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--url", required=True, help="http://HOST:PORT[/PATH], https://... or unix:///PATH")
    parser.add_argument("--model", metavar="NAME", help="(default: the only one that the server lists)")
    parser.add_argument(
        "--endpoint",
        choices=tuple(ENDPOINTS),
        help="/v1/chat/completions or /v1/completions (default: completions for token ids, else chat)",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="one for all tenants, or repeated for each (default: KVTRIE_API_KEY)",
    )
    when = parser.add_argument_group("when")
    when.add_argument(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        metavar="KIND",
        help=f"{', '.join(ARRIVALS)} (default: %(default)s)",
    )
    when.add_argument(
        "--rate", type=float, metavar="R", help="requests per second (default: 1, or the trace's own)"
    )
    when.add_argument(
        "--trace", type=Path, metavar="FILE", help="of --arrivals trace: any that `trace` reads"
    )
    when.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="instead: a closed loop, N requests at a time, the next one when one is answered",
    )
    when.add_argument("--requests", type=int, default=100, metavar="N", help="default %(default)s")
    when.add_argument(
        "--warm-up",
        type=int,
        default=0,
        metavar="N",
        help="the first N are sent and not measured (default 0)",
    )
    when.add_argument("--seed", type=int, default=0, metavar="N", help="default %(default)s")
    what = parser.add_argument_group("what")
    what.add_argument(
        "--workload",
        choices=tuple(WORKLOADS),
        default="tokens",
        metavar="NAME",
        help=f"{', '.join(WORKLOADS)} (default: %(default)s)",
    )
    what.add_argument("--data", type=Path, metavar="DIR", help="folder with the files of all but `tokens`")
    what.add_argument("--tenants", type=int, default=1, metavar="N", help="default %(default)s")
    what.add_argument(
        "--tenant-field", metavar="NAME", help="field that gets the tenant's name: cache_salt, user, ..."
    )
    what.add_argument("--live-chats", type=int, default=16, metavar="N", help="chats or trees at a time")
    what.add_argument("--shared-tokens", type=int, default=1024, metavar="N", help="of `tokens`")
    what.add_argument("--own-tokens", type=int, default=64, metavar="N", help="of `tokens`")
    what.add_argument("--vocabulary", type=int, default=1000, metavar="N", help="of `tokens`: ids below N")
    what.add_argument(
        "--token-ids",
        action="store_true",
        help="send texts as token ids of --tokenizer, so that every server gets the same tokens",
    )
    what.add_argument("--tokenizer", metavar="NAME", help=TOKENIZER_HELP)
    what.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of an answer")
    what.add_argument("--ignore-eos", action="store_true", help="answers have all --max-tokens")
    what.add_argument("--extra-body", default="{}", metavar="JSON", help="fields; null removes one")
    measured = parser.add_argument_group("measuring")
    measured.add_argument("--slo-ttft-ms", type=float, default=2000, metavar="MS", help="default %(default)s")
    measured.add_argument("--slo-tpot-ms", type=float, default=100, metavar="MS", help="default %(default)s")
    measured.add_argument("--max-connections", type=int, default=256, metavar="N", help="default %(default)s")
    measured.add_argument("--timeout", type=float, default=600, metavar="S", help="of a request")
    measured.add_argument("--format", choices=("table", "json"), default="table", help="default: %(default)s")
    measured.add_argument("--output", type=Path, metavar="FILE", help="also write JSON with every request")
    measured.add_argument("--plot", type=Path, metavar="FILE", help="also draw a .png or .svg (matplotlib)")
    measured.add_argument(
        "--print-requests", action="store_true", help="print what would be sent, and when; send nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the load; 1 if a request failed."""
    # The client's packages are needed by this command only.
    from kvtrie.api.load.doubts import doubts
    from kvtrie.api.load.measures import Slo, measure
    from kvtrie.api.load.plot import plot_load
    from kvtrie.api.load.progress import progress_bar
    from kvtrie.api.load.report import load_document, load_lines, request_rows
    from kvtrie.api.load.run_load import ClientLimits, run_load
    from kvtrie.api.load.target import only_model, parse_target
    from kvtrie.api.trace.plot_file import check_plot

    # 1. What can be wrong is found before anything is sent.
    plan = load_plan(args)
    if args.print_requests:
        write("\n".join(plan.lines()))
        return 0
    keys = args.api_key or [key for key in [os.environ.get("KVTRIE_API_KEY")] if key]
    target = parse_target(args.url, keys, args.tenants)
    slo = Slo(args.slo_ttft_ms / 1e3, args.slo_tpot_ms / 1e3)
    limits = ClientLimits(args.max_connections, args.timeout)
    if not 0 <= args.warm_up < args.requests:
        raise InputError(f"--warm-up must be from 0 to {args.requests - 1}, got {args.warm_up}")
    if args.plot is not None:
        check_plot(args.plot)
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise InputError(f"--output {args.output}: there is no folder {args.output.absolute().parent}")
    model = args.model or asyncio.run(only_model(target))
    # 2. The load.
    with progress_bar() as progress:
        done = asyncio.run(run_load(plan, target, model, limits, progress))
    # 3. The results.
    measures = measure(plan, done, slo, args.warm_up)
    document = load_document(plan, done, measures, slo, {**_settings(args), "model": model})
    if args.output is not None:
        whole = {**document, "requests": request_rows(done.outcomes)}
        args.output.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    if args.plot is not None:
        plot_load(done.outcomes[args.warm_up :], slo, f"{model}, {args.workload}", args.plot)
    if args.format == "json":
        write(json.dumps(document))
    else:
        lines = load_lines(measures, slo, doubts(measures, done))
        write("\n".join(escaped(line) for line in lines))
    return 130 if done.was_interrupted else 1 if measures.failed else 0


def load_plan(args: argparse.Namespace) -> LoadPlan:
    """The plan that the arguments describe.

    Raises:
        InputError: they contradict each other, or a file is missing or wrong.
    """
    if args.requests < 1:
        raise InputError(f"--requests must be at least 1, got {args.requests}")
    config = WorkloadConfig(
        args.tenants, args.live_chats, args.shared_tokens, args.own_tokens, args.vocabulary
    )
    workload = make_workload(args.workload, config, WorkloadFiles(args.data))
    is_tokens = workload.needs_token_ids or args.token_ids
    if is_tokens and args.endpoint == "chat":
        raise InputError("token ids are sent to /v1/completions only: leave out --endpoint chat")
    form = RequestForm(
        args.endpoint or ("completions" if is_tokens else "chat"),
        args.max_tokens,
        args.ignore_eos,
        args.tenant_field,
        _extra_body(args.extra_body),
    )
    prompts = workload.prompts(args.requests, args.seed)
    if args.token_ids and not workload.needs_token_ids:
        prompts = _as_token_ids(prompts, args.tokenizer)
    if args.concurrency is not None:
        if args.rate is not None or args.trace is not None:
            raise InputError("--concurrency is a closed loop, which has no --rate and no --trace")
        return LoadPlan(prompts, form, concurrency=args.concurrency)
    return LoadPlan(prompts, form, offsets=_offsets(args))


def _offsets(args: argparse.Namespace) -> list[float]:
    if (args.arrivals == "trace") != (args.trace is not None):
        raise InputError("--arrivals trace needs --trace FILE, and --trace needs --arrivals trace")
    if args.arrivals == "trace":
        return traced(args.trace, args.requests, args.rate)
    rate = 1.0 if args.rate is None else args.rate
    if args.arrivals == "constant":
        return constant(rate, args.requests)
    return poisson(rate, args.requests, args.seed)


def _as_token_ids(prompts: list[LoadPrompt], name: str | None) -> list[LoadPrompt]:
    if name is None:
        raise InputError("--token-ids needs --tokenizer, that of the model served")
    tokenizer = open_tokenizer(name)
    return in_token_ids(prompts, lambda text: tokenizer.encode(text, True))


def _extra_body(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise InputError(f"--extra-body must be a JSON object, got {text[:60]!a}")
    return said


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON, without keys."""
    left_out = (
        "api_key",
        "command",
        "bench_command",
        "show_help",
        "output",
        "plot",
        "format",
        "print_requests",
    )
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
