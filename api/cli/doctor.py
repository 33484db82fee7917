"""`kvtrie doctor`: what this machine can run, and how to get what is missing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from kvtrie.api.cli.console import escaped, table, write
from kvtrie.api.cli.snapshot_source import TIMEOUT_SECONDS, add_server_arguments, api_key, store_url
from kvtrie.api.http.http_get import http_get
from kvtrie.api.huggingface.try_generate import try_generate
from kvtrie.api.inspection.machine import Finding, machine_findings
from kvtrie.prefix_tree.errors import StoreError
from kvtrie.store import open_store

HELP = "check what this machine can run, and say how to get what is missing"
EXAMPLES = (
    "kvtrie doctor",
    "kvtrie doctor --store redis://127.0.0.1:6379/0 --url http://127.0.0.1:7070",
)
FORMAT = "kvtrie-doctor"
VERSION = 1

_NO_RECORD = b"kvtrie doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `doctor`."""
    add_server_arguments(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 3 if the core or something that was asked for does not work."""
    findings = [*machine_findings(), try_generate()]
    if args.store is not None:
        findings.append(_store(store_url(args.store)))
    if args.url is not None:
        findings.append(_sidecar(args.url, api_key(args)))
    works = all(finding.is_ok for finding in findings if finding.is_needed)
    if args.format == "json":
        checks = [asdict(finding) for finding in findings]
        write(json.dumps({"format": FORMAT, "version": VERSION, "works": works, "checks": checks}))
    else:
        rows = [(_mark(finding), finding.name, escaped(_shown(finding))) for finding in findings]
        verdict = "the core works" if works else "something needed is missing: see the lines marked FAIL"
        write(f"{table(rows)}\n\n{verdict}")
    return 0 if works else 3


def _mark(finding: Finding) -> str:
    return "ok" if finding.is_ok else "FAIL" if finding.is_needed else "-"


def _shown(finding: Finding) -> str:
    found = ", ".join(part for part in (finding.found or "missing", finding.note) if part)
    return found if finding.is_ok else f"{found}: {finding.remedy}"


def _store(url: str) -> Finding:
    store = open_store(url, deadline_seconds=TIMEOUT_SECONDS)
    try:
        store.get_many([_NO_RECORD])
    except StoreError as error:
        return Finding("store", "unreachable", False, True, f"{error}; start it, or correct --store")
    finally:
        store.close()
    return Finding("store", "answers", True, True, "")


def _sidecar(url: str, key: str | None) -> Finding:
    try:
        reply = http_get(url, "/readyz", api_key=key, deadline_seconds=TIMEOUT_SECONDS)
    except StoreError as error:
        return Finding("sidecar", "unreachable", False, True, str(error))
    if reply.status == 200:
        return Finding("sidecar", f"ready at {url}", True, True, "")
    return Finding("sidecar", "not ready", False, True, f"{url} answered HTTP {reply.status} to GET /readyz")
