"""`kvtrie sidecar`: a cache process for the model servers of one host."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvtrie.api.byte_size import SIZE_HELP
from kvtrie.prefix_tree.policies.named import POLICIES

HELP = "run a cache process for the model servers of this host"
EXAMPLES = (
    "kvtrie sidecar",
    "kvtrie sidecar --listen unix:///run/kvtrie.sock --memory 4G --store redis://127.0.0.1:6379/0",
    "kvtrie sidecar --memory 8G --policy learned --tenants tenants.toml",
)
DEFAULT_LISTEN = "http://127.0.0.1:7070"
SMALLEST_MEMORY_BYTES = 1 << 20
"""About one record of a small model: with less, a sidecar would start and reject everything."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        "--listen",
        action="append",
        metavar="URL",
        help=f"http://host:port or unix:///path[?mode=660]; may be repeated (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--memory",
        default="1GiB",
        metavar="SIZE",
        help=f"for cached records: {SIZE_HELP} (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk-tokens", type=int, default=64, metavar="N", help="as the engines have it (default: 64)"
    )
    parser.add_argument(
        "--policy",
        default="lru",
        metavar="NAME",
        help=f"eviction policy: {', '.join(POLICIES)} (default: lru)",
    )
    parser.add_argument(
        "--store", metavar="URL", help="store behind the memory, e.g. redis://127.0.0.1:6379/0"
    )
    parser.add_argument(
        "--tenants", type=Path, metavar="FILE", help="who may do what (default: one open tenant, on loopback)"
    )
    parser.epilog = "KVTRIE_STORE_KEY (16 to 64 bytes): records must carry a MAC with this key."


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    # The server's packages are needed by this command only.
    from kvtrie.api.byte_size import parse_bytes
    from kvtrie.api.eviction import Eviction
    from kvtrie.api.http.address import parse_address
    from kvtrie.api.http.listeners import Listener, check_addresses
    from kvtrie.api.http.tenants import Tenants, load_tenants
    from kvtrie.api.sidecar.run_sidecar import serve
    from kvtrie.api.sidecar.sidecar import Sidecar, SidecarConfig
    from kvtrie.prefix_tree.errors import InputError
    from kvtrie.store import open_store, store_key_from_environment

    store_key = store_key_from_environment()
    addresses = [parse_address(text) for text in args.listen or [DEFAULT_LISTEN]]
    tenants = Tenants() if args.tenants is None else load_tenants(args.tenants)
    memory_bytes = parse_bytes(args.memory)
    if memory_bytes < SMALLEST_MEMORY_BYTES:
        raise InputError(f"--memory {args.memory} is too small to hold chunks of a model; give at least 1MiB")
    config = SidecarConfig(
        memory_bytes=memory_bytes,
        chunk_tokens=args.chunk_tokens,
        eviction=Eviction(args.policy, tenants.shares, tenants.quotas),
        store_key=store_key,
    )
    check_addresses(addresses, with_tenants=not tenants.is_open)
    store = None if args.store is None else open_store(args.store, deadline_seconds=config.store_read_seconds)

    def announce(listeners: list[Listener]) -> None:
        for listener in listeners:
            print(f"kvtrie sidecar: listening on {listener.shown}", flush=True)

    sidecar = Sidecar(config, store=store)
    try:
        serve(sidecar, tenants, addresses, announce)
    finally:
        sidecar.close()
    return 0
