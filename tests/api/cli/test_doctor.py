"""`kvtrie doctor`: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
import transformers

from kvtrie.api import PrefixCachedModel
from kvtrie.api.inspection import machine
from kvtrie.api.inspection.version_range import ranges_tested


def test_this_machine(kvtrie):
    ran = kvtrie("doctor", "--format", "json")
    assert ran.code == 0
    document = ran.document
    assert (document["format"], document["works"]) == ("kvtrie-doctor", True)
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("numpy", "torch", "xxhash", "sortedcontainers"):
        assert checks[name]["found"] == importlib.metadata.version(name)
        assert checks[name]["is_needed"]
    assert checks["generate"] == {
        "name": "generate",
        "found": "gives the model's own tokens, cold and warm",
        "is_ok": True,
        "is_needed": True,
        "remedy": "",
        "note": "",
    }
    for name in (
        "triton",
        "transformers",
        "redis",
        "hiredis",
        "fastapi",
        "uvicorn",
        "httpx",
        "mistral-common",
    ):
        assert not checks[name]["is_needed"]
    assert {"platform", "cores", "memory", "cpu path", "gpu", "redis-server"} <= set(checks)
    assert "the core works" in kvtrie("doctor").out


def test_what_is_missing_comes_with_a_remedy(kvtrie, monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("xxhash", "redis"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.5.0+cpu" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    ran = kvtrie("doctor")
    assert ran.code == 3
    lines = {line.split()[1]: line for line in ran.out.splitlines() if line}
    assert lines["xxhash"].startswith("FAIL")
    assert "pip install 'xxhash>=3.4.1'" in lines["xxhash"]
    assert lines["torch"].startswith("FAIL")
    assert "1.5.0+cpu, older than tested (2.11 to " in lines["torch"]
    assert "pip install -U 'torch>=2.11'" in lines["torch"]
    assert lines["redis"].startswith("- ")
    assert "apt-get install redis-server" in lines["redis-server"]


def test_an_unreachable_store_or_sidecar_is_exit_code_3(kvtrie, tmp_path):
    ran = kvtrie("doctor", "--store", "redis://:hunter2@127.0.0.1:1")
    assert ran.code == 3
    assert "unreachable" in ran.out
    assert "hunter2" not in ran.out
    ran = kvtrie("doctor", "--url", f"unix://{tmp_path}/none", "--format", "json")
    assert ran.code == 3
    assert not ran.document["works"]


def test_a_reachable_store(kvtrie):
    assert kvtrie("doctor", "--store", "memory").code == 0


def faked(monkeypatch, **versions: str) -> None:
    """Makes packages look installed in other versions."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))


def test_versions_beside_those_tested(kvtrie, monkeypatch):
    newest = ranges_tested()["redis"].newest
    faked(
        monkeypatch, transformers="99.1", redis="4.6.0", numpy=ranges_tested()["numpy"].oldest, httpx="0.28.1"
    )
    ran = kvtrie("doctor", "--format", "json")
    checks = {check["name"]: check for check in ran.document["checks"]}
    assert (
        checks["transformers"]["note"]
        == f"newer than tested (5.17 to {ranges_tested()['transformers'].newest})"
    )
    assert checks["transformers"]["is_ok"]
    assert checks["redis"]["note"] == f"older than tested (5.0 to {newest})"
    assert not checks["redis"]["is_ok"]
    assert checks["redis"]["remedy"] == "pip install -U 'redis>=5.0'"
    assert (checks["numpy"]["is_ok"], checks["numpy"]["note"]) == (True, "")
    assert (checks["httpx"]["is_ok"], checks["httpx"]["note"]) == (True, "")
    # Redis is no part of the core, and a newer transformers may well work.
    assert ran.code == 0
    lines = {line.split()[1]: line for line in kvtrie("doctor").out.splitlines() if line}
    assert "99.1, newer than tested (5.17 to " in lines["transformers"]
    assert "4.6.0, older than tested (5.0 to " in lines["redis"]


def test_a_generate_that_raises_is_a_failure_that_names_the_version(kvtrie, monkeypatch):
    def generate(*arguments, **settings):
        raise RuntimeError("The size of tensor a (40) must match the size of tensor b (79)\nand more")

    monkeypatch.setattr(PrefixCachedModel, "generate", generate)
    ran = kvtrie("doctor")
    assert ran.code == 3
    (line,) = (line for line in ran.out.splitlines() if " generate " in line)
    assert line.startswith("FAIL")
    assert (
        f"wrong with transformers {transformers.__version__}: it raises RuntimeError: The size of tensor a"
        in line
    )
    assert f"pip install 'transformers>=5.17,<={ranges_tested()['transformers'].newest}'" in line


@pytest.mark.parametrize(("length", "state"), [(1, "cold"), (40, "cold"), (1, "warm"), (40, "warm")])
def test_a_generate_that_gives_other_tokens_is_a_failure(kvtrie, monkeypatch, length, state):
    real, seen = PrefixCachedModel.generate, []

    def generate(self, prompt, **settings):
        output = real(self, prompt, **settings)
        seen.append(prompt.shape[1])
        is_warm = seen.count(length) == 2
        if prompt.shape[1] == length and is_warm == (state == "warm"):
            output[0, -1] += 1
        return output

    monkeypatch.setattr(PrefixCachedModel, "generate", generate)
    ran = kvtrie("doctor", "--format", "json")
    assert (ran.code, ran.document["works"]) == (3, False)
    found = next(check["found"] for check in ran.document["checks"] if check["name"] == "generate")
    assert found.endswith(f"a {state} prompt of length {length} gives other tokens than the model's own")


def test_a_cache_that_reuses_nothing_is_a_failure(kvtrie, monkeypatch):
    monkeypatch.setattr(PrefixCachedModel, "stats", lambda self: {"cached_tokens": 0})
    ran = kvtrie("doctor", "--format", "json")
    assert ran.code == 3
    assert ran.document["checks"][-1]["found"].endswith("a repeated prompt reuses nothing")


def test_where_transformers_is_missing_generate_is_not_tried_and_the_core_works(kvtrie, monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    ran = kvtrie("doctor", "--format", "json")
    assert ran.code == 0
    assert ran.document["checks"][-1]["found"] == "not tried"
    assert not ran.document["checks"][-1]["is_needed"]
