"""`kvtrie serve`: a model behind OpenAI's HTTP API."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtrie.api.cli.console import escaped
from kvtrie.api.cli.quantities import shown_bytes
from kvtrie.api.cli.serve_options import Value, add_options, read_options, toml_of
from kvtrie.prefix_tree.errors import InputError

if TYPE_CHECKING:
    from kvtrie.api.http.listeners import Listener
    from kvtrie.api.http.tenants import Tenants

HELP = "serve a model over OpenAI's HTTP API, with cached prefixes not computed again"
EXAMPLES = (
    "kvtrie serve --model smollm2",
    "kvtrie serve --model ./my-model --listen http://127.0.0.1:8000 --memory 4G --tenants tenants.toml",
    "kvtrie serve --model ./my-model --print-config",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    add_options(parser)
    parser.epilog = (
        "Every option can also be set by KVTRIE_SERVE_NAME in the environment, and by its name in --config. "
        "KVTRIE_API_KEY: the key for --sidecar. KVTRIE_STORE_KEY: seals records of --store with a MAC."
    )


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; 1 if the engine failed."""
    # 1. Whatever can be wrong in the options, before a model is loaded.
    values = read_options(args)
    if args.print_config:
        print(toml_of(values))
        return 0
    if not values["model"]:
        raise InputError("which model? Pass --model with a Hugging Face directory, a .gguf file, or smollm2")
    if values["store"] and values["sidecar"]:
        raise InputError("--store and --sidecar are both the tier below the pool; pass one of them")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        # A bar in a log is a long line of every state that it had.
        os.environ.setdefault("TQDM_DISABLE", "1")
    # The server's packages are needed by this command only.
    import torch

    from kvtrie.api.byte_size import parse_bytes
    from kvtrie.api.engine.engine_config import EngineConfig
    from kvtrie.api.eviction import Eviction
    from kvtrie.api.http.address import parse_address
    from kvtrie.api.http.listeners import check_addresses
    from kvtrie.api.http.tenants import Tenants, load_tenants
    from kvtrie.api.huggingface.cached_model import PrefixCachedModel
    from kvtrie.api.huggingface.load_model import load_model
    from kvtrie.api.server.memory_default import default_memory
    from kvtrie.api.server.run_server import serve
    from kvtrie.api.server.server_config import ServerConfig

    options: dict[str, Any] = values
    addresses = [parse_address(text) for text in options["listen"]]
    tenants = Tenants() if options["tenants"] is None else load_tenants(Path(options["tenants"]))
    check_addresses(addresses, with_tenants=not tenants.is_open)
    memory = None if options["memory"] == "auto" else parse_bytes(options["memory"])
    pin_budget = None if options["pin_budget"] is None else parse_bytes(options["pin_budget"])
    engine = EngineConfig(
        step_tokens=options["step_tokens"],
        max_running=options["max_running"],
        max_waiting=options["max_waiting"],
    )
    config = ServerConfig(
        names=tuple(options["served_name"]) or (_name_of(options["model"]),),
        source=options["model"],
        max_body_bytes=parse_bytes(options["max_body"]),
        chat_bytes=0 if options["chat_memory"] == "0" else parse_bytes(options["chat_memory"]),
        drain_seconds=options["drain_seconds"],
        failed_seconds=options["failed_seconds"],
    )
    # 2. The model, and a pool that fits the memory it leaves.
    device = _device(options["device"])
    dtype = None if options["dtype"] == "auto" else getattr(torch, options["dtype"])
    _say(f"loading {escaped(options['model'])}")
    loaded = load_model(options["model"], dtype, device)
    _say(loaded.description)
    memory = default_memory(torch.device(device)) if memory is None else memory
    cached = PrefixCachedModel(
        loaded.model,
        loaded.tokenizer,
        memory=memory,
        chunk_tokens=options["chunk_tokens"],
        kv_format=options["kv_format"],
        store=options["store"] or options["sidecar"],
        shared=_readers(tenants),
        pin_budget=pin_budget,
        eviction=Eviction(options["policy"], tenants.shares, tenants.quotas),
        engine=engine,
    )
    _say(f"KV pool of {shown_bytes(memory)} on {device}; at most {cached.longest_sequence} tokens a request")
    with cached:
        return serve(cached, tenants, addresses, config, _announce)


def _announce(listeners: list[Listener]) -> None:
    for listener in listeners:
        print(f"kvtrie serve: listening on {listener.shown}", flush=True)


def _say(line: str) -> None:
    print(f"kvtrie serve: {line}", file=sys.stderr, flush=True)


def _name_of(model: str) -> str:
    """A model's name where the user gave none: its directory's, or its file's without `.gguf`."""
    return Path(model).resolve().name.removesuffix(".gguf")


def _device(name: Value) -> str:
    """A device of this machine.

    Raises:
        InputError: there is none of that name.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=str(name))
    # torch raises what it pleases for a device that it does not know, or that the machine lacks.
    except Exception as error:
        said = str(error).splitlines()[0]
        raise InputError(f"--device {escaped(str(name))} is not to be had: {escaped(said)}") from None
    return str(name)


def _readers(tenants: Tenants) -> dict[str, list[str]]:
    """Shared scopes, and the tenants that may read each."""
    readers: dict[str, list[str]] = {}
    for caller in (tenants.callers or {}).values():
        for scope in caller.reads:
            readers.setdefault(scope, []).append(caller.name)
    return readers
