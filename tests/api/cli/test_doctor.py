"""`kvtrie doctor`: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from kvtrie.api import machine


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
    assert "pip install 'xxhash>=3.4'" in lines["xxhash"]
    assert lines["torch"].startswith("FAIL")
    assert "1.5.0+cpu is too old" in lines["torch"]
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


@pytest.mark.parametrize(
    ("version", "release"), [("2.13.0+cpu", (2, 13, 0)), ("5.23.0rc1", (5, 23, 0)), ("nightly", ())]
)
def test_versions_are_compared_as_numbers(version, release):
    assert machine._release(version) == release
