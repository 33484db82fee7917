"""Where a command's snapshot comes from: a file, a running sidecar, or a store full of records."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kvtrie.api.http.http_get import http_get
from kvtrie.api.inspection.snapshot_check import parse_snapshot
from kvtrie.api.inspection.store_snapshot import store_snapshot
from kvtrie.prefix_tree.errors import AccessDenied, InputError, StoreUnavailable
from kvtrie.prefix_tree.snapshot import Snapshot
from kvtrie.store import open_store, store_key_from_environment

TIMEOUT_SECONDS = 10.0


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a source, of which a command takes exactly one."""
    source = parser.add_argument_group("snapshot, from exactly one of")
    source.add_argument("file", nargs="?", metavar="FILE", help="a snapshot file; - for standard input")
    add_server_arguments(source)


def add_server_arguments(parser: argparse._ActionsContainer) -> None:
    """`--url` with its key, and `--store`."""
    parser.add_argument("--url", help="a running sidecar: http://HOST:PORT or unix:///PATH")
    parser.add_argument("--api-key", metavar="KEY", help="key for --url (default: KVTRIE_API_KEY)")
    parser.add_argument(
        "--store", metavar="URL", help="records in a store: redis://HOST:PORT/DB, ..., or memory"
    )


def read_snapshot(args: argparse.Namespace) -> Snapshot:
    """The snapshot that `add_source_arguments` named.

    Raises:
        InputError: none or several sources, or what came from there is no snapshot.
        StoreUnavailable: the sidecar or store does not answer.
    """
    if sum(source is not None for source in (args.file, args.url, args.store)) != 1:
        raise InputError("give exactly one of FILE (a snapshot, - for standard input), --url and --store")
    if args.url is not None:
        return _from_sidecar(args.url, api_key(args))
    if args.store is not None:
        return _from_store(args.store)
    return _parsed(read_input(args.file), named(args.file))


def read_input(name: str) -> bytes:
    """The bytes of a file; of standard input for `-`.

    Raises:
        InputError: it cannot be read.
    """
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {name!a}: {reason}") from None


def api_key(args: argparse.Namespace) -> str | None:
    """The sidecar key of this call, or None."""
    key: str | None = args.api_key if args.api_key is not None else os.environ.get("KVTRIE_API_KEY")
    return key or None


def store_url(text: str) -> str:
    """`text` as a store URL; `memory` is short for `memory://`."""
    return "memory://" if text == "memory" else text


def named(file: str) -> str:
    """How errors name a file that a user gave."""
    return "standard input" if file == "-" else ascii(file)[1:-1]


def _parsed(text: bytes, source: str) -> Snapshot:
    try:
        return parse_snapshot(text)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _from_sidecar(url: str, key: str | None) -> Snapshot:
    reply = http_get(url, "/v1/tree", api_key=key, deadline_seconds=TIMEOUT_SECONDS)
    if reply.status in (401, 403):
        refused = "the API key" if key else "a request without a key: pass --api-key, or set KVTRIE_API_KEY"
        raise AccessDenied(f"the sidecar at {url} refused {refused}")
    if reply.status != 200:
        raise StoreUnavailable(f"{url} answered HTTP {reply.status} to GET /v1/tree: is it a kvtrie sidecar?")
    return _parsed(reply.body, url)


def _from_store(text: str) -> Snapshot:
    url = store_url(text)
    store_key = store_key_from_environment()
    store = open_store(url, deadline_seconds=TIMEOUT_SECONDS)
    try:
        return store_snapshot(store, url.partition(":")[0].partition("+")[0], store_key)
    finally:
        store.close()
