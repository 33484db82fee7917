"""Every third-party import is declared, and what only an extra brings is not needed without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("kvtrie", "prefix_tree", "chunk_kernels", "store", "api")

NOT_IMPORTED = {"hiredis"}
"""redis-py uses it where it is installed. peft is the caller's: a wrapped model may have adapters of it."""

USERS = {
    "api/huggingface/pool_cache.py": "PrefixCachedModel",
    "api/huggingface/generate_loop.py": "PrefixCachedModel",
    "api/huggingface/generate_arguments.py": "PrefixCachedModel",
    "api/huggingface/generate_check.py": "PrefixCachedModel",
    "api/models/model_view.py": "Engine",
    "api/huggingface/tree_handle.py": "PrefixCachedModel",
    "api/load/client.py": "kvtrie bench serve",
    "api/load/target.py": "kvtrie bench serve",
    "api/server/answer.py": "kvtrie serve",
    "api/server/api_error.py": "kvtrie serve",
    "api/server/app.py": "kvtrie serve",
    "api/server/cache_routes.py": "kvtrie serve",
    "api/server/generation.py": "kvtrie serve",
    "api/server/checked_request.py": "kvtrie serve",
    "api/server/reply_notes.py": "kvtrie serve",
    "api/server/replies.py": "kvtrie serve",
    "api/server/requests.py": "kvtrie serve",
    "api/server/openapi.py": "kvtrie serve",
    "api/server/run_server.py": "kvtrie serve",
    "api/server/text_pool.py": "kvtrie serve",
    "api/server/until_gone.py": "kvtrie serve",
    "api/sidecar/app.py": "kvtrie sidecar",
    "api/tiers/sidecar_tier.py": "a sidecar as lower tier",
    "api/tiers/sidecar_connection.py": "a sidecar as lower tier",
    "api/http/byte_budget.py": "kvtrie sidecar and kvtrie serve",
    "api/http/http_server.py": "kvtrie sidecar and kvtrie serve",
    "api/http/request_body.py": "kvtrie sidecar and kvtrie serve",
    "api/http/http_loop.py": "a sidecar as lower tier",
    "api/http/request_guard.py": "kvtrie sidecar and kvtrie serve",
    "api/http/watched_protocol.py": "kvtrie sidecar and kvtrie serve",
    "api/http/door.py": "kvtrie sidecar and kvtrie serve",
    "api/sidecar/run_sidecar.py": "kvtrie sidecar",
    "api/http/tenants.py": "kvtrie sidecar (tomli, on Python 3.10)",
    "store/redis_connection.py": "a Redis store",
}
"""Modules that import an extra's package at their top, and who loads them; the tests below hold the rest."""


@dataclass(frozen=True)
class Import:
    """One third-party import."""

    module: str
    """Path of the importing file, from the repository."""
    package: str
    """Top-level name, as pip spells it."""
    is_lazy: bool
    """Whether it runs only when a function is called, or only for a type checker."""


def imports() -> Iterator[Import]:
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield from imports_of(path.read_text(), str(path.relative_to(REPOSITORY)))


def imports_of(source: str, module: str) -> Iterator[Import]:
    def visit(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports by a relative name"
            names = [node.module or ""]
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in ("kvtrie", "tomllib"):
                yield Import(module, top.replace("_", "-"), is_lazy)
        is_lazy = is_lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        is_lazy = is_lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, is_lazy)

    yield from visit(ast.parse(source), False)


def declared() -> dict[str, set[str]]:
    """Names of packages by the group that lists them: `core`, or the extra's name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: {line.partition(">=")[0] for line in lines} for group, lines in groups.items()}


def test_every_import_is_declared_and_every_declared_package_is_imported():
    groups = declared()
    users = set().union(*(names for group, names in groups.items() if group != "dev"))
    found = {one.package for one in imports()}
    assert found - users == set(), "imported, but a user's pip does not install them"
    assert (groups["core"] | groups["all"]) - found == NOT_IMPORTED


def test_what_an_extra_brings_is_imported_lazily_or_by_its_users():
    core = declared()["core"]
    eager = {one.module for one in imports() if one.package not in core and not one.is_lazy}
    assert eager == set(USERS)


def test_the_walk_sees_what_is_lazy():
    source = """
import torch, numpy as np
from transformers.cache_utils import Cache
if TYPE_CHECKING:
    from redis.retry import Retry
def later():
    import mistral_common.tokens
    import json
class Eager:
    import rich
"""
    assert list(imports_of(source, "m")) == [
        Import("m", "torch", False),
        Import("m", "numpy", False),
        Import("m", "transformers", False),
        Import("m", "redis", True),
        Import("m", "mistral-common", True),
        Import("m", "rich", False),
    ]


WITHOUT = """
import importlib.abc, importlib.metadata, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Missing())
real = importlib.metadata.version
def version(name):
    if name.replace("-", "_") in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
"""
"""A prelude that makes packages look uninstalled."""


def without_extras(statement: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a statement where nothing that only an extra lists can be imported."""
    groups = declared()
    return without(set().union(*groups.values()) - groups["core"], statement, *arguments)


def without(packages: set[str], statement: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    missing = sorted(name.replace("-", "_") for name in packages)
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + statement, ",".join(missing), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY / "tests",
    )


CLI = "from kvtrie.api.cli import main\nsys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    "command",
    [
        "bench",
        "demo",
        "doctor",
        "dump",
        "explain",
        "record",
        "serve",
        "sidecar",
        "simulate",
        "stats",
        "trace",
    ],
)
def test_without_the_extras_every_command_gives_its_help(command):
    ran = without_extras(CLI, command, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"usage: kvtrie {command} ")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["bench", "serve", "--url", "http://127.0.0.1:1"], "httpx"),
        (["demo"], "transformers"),
        (["serve", "--model", "none"], "transformers"),
        (["sidecar", "--listen", "http://127.0.0.1:0"], ""),
        (["dump", "--store", "redis://127.0.0.1:1"], "redis"),
        (["explain", "none.json", "--text", "a", "--tokenizer", "tekken"], "mistral"),
    ],
)
def test_without_the_extras_a_command_that_needs_one_says_so_in_one_line(arguments, missing):
    ran = without_extras(CLI, *arguments)
    assert ran.returncode in (2, 3)
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert missing in ran.stderr
    assert "pip install" in ran.stderr and "kvtrie[all]" in ran.stderr


def test_without_the_extras_doctor_works_and_names_what_is_missing():
    ran = without_extras(CLI, "doctor")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "pip install 'transformers>=5.17'" in ran.stdout
    assert "the core works" in ran.stdout


def test_without_the_extras_a_name_loads_or_says_what_it_needs():
    ran = without_extras(
        "import kvtrie.api, kvtrie.store, kvtrie.chunk_kernels, kvtrie.prefix_tree\n"
        "for name in kvtrie.api.__all__:\n"
        "    try:\n"
        "        getattr(kvtrie.api, name)\n"
        "    except ImportError as error:\n"
        "        print(error)"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "Engine needs transformers: pip install 'kvtrie[all]'",
        "EngineLoop needs transformers: pip install 'kvtrie[all]'",
        "PrefixCachedModel needs transformers: pip install 'kvtrie[all]'",
        "SidecarTier needs httpx: pip install 'kvtrie[all]'",
        "Warmed needs transformers: pip install 'kvtrie[all]'",
    ]


def test_without_httpx_a_sidecar_as_lower_tier_is_refused_in_one_sentence():
    ran = without_extras(
        "from kvtrie.api.tiers.open_tier import open_lower\n"
        "from kvtrie.prefix_tree.errors import InputError\n"
        "try:\n"
        "    open_lower('http://127.0.0.1:1')\n"
        "except InputError as error:\n"
        "    print(error)"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "the sidecar's client needs httpx: pip install 'kvtrie[all]'\n"


def test_without_triton_which_is_for_linux_only_the_wrapper_generates():
    ran = without({"triton"}, CLI, "doctor")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "the model's own tokens, cold and warm" in ran.stdout
