"""Files that are not what a command needs: the error names the file, the place in it and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MOONCAKE = '{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1]}'


@pytest.fixture
def error_of(scene, kvtrie, tmp_path):
    """What `kvtrie dump` says about a snapshot that `change` changed."""

    def call(change) -> str:
        scene.put(scene.root(), [1, 2, 3, 4, 5, 6, 7, 8])
        document = json.loads(Path(scene.file()).read_text())
        changed = change(document)
        path = tmp_path / "broken.json"
        path.write_text(changed if isinstance(changed, str) else json.dumps(document))
        ran = kvtrie("dump", str(path))
        assert ran.code == 2
        assert ran.err.startswith(f"kvtrie dump: {path}: ")
        for word in ("Error", "Expecting", "__init__", "argument", "char "):
            assert word not in ran.err
        return ran.err

    return call


def _drop(place: Any, name: str) -> None:
    del place[name]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: "hello", "not a kvtrie snapshot: it is not JSON at column 1, where it says 'hello'"),
        (lambda d: json.dumps(d)[:300], "not a kvtrie snapshot: it is not JSON: cut off after column "),
        (lambda _: "", "not a kvtrie snapshot: it is empty"),
        (lambda _: "[]", "not a kvtrie snapshot: it is other JSON"),
        (lambda d: d.update(format="kvtrie-stats"), "not a kvtrie snapshot: its format is 'kvtrie-stats'"),
        (lambda d: _drop(d["nodes"][1], "hits"), "damaged kvtrie snapshot: nodes[1] lacks hits"),
        (
            lambda d: d["tiers"][0].update(colour="red"),
            "damaged kvtrie snapshot: tiers[0] has a field 'colour'",
        ),
        (lambda d: d.update(nodes=5), "damaged kvtrie snapshot: nodes is 5, and no list"),
        (lambda d: d["nodes"].append(None), "damaged kvtrie snapshot: nodes[2] is None, and no object"),
        (lambda d: d["nodes"][0].update(pin={"name": "x"}), "nodes[0].pin lacks expires_at"),
        (lambda d: d["nodes"][0].update(hits="x"), "damaged kvtrie snapshot: nodes[0].hits cannot be 'x'"),
        (lambda d: d.update(counters=[]), "damaged kvtrie snapshot: counters is [], and no object"),
        (lambda d: _drop(d["namespaces"][0]["fields"], "layout"), "namespaces[0] is not usable"),
    ],
)
def test_a_snapshot(error_of, change, problem):
    error = error_of(change)
    assert problem in error
    assert "write one with PrefixCachedModel.snapshot(path) or kvtrie dump --format json" in error


def test_a_snapshot_of_another_version(error_of):
    error = error_of(lambda d: d.update(version=7))
    assert "snapshot version 7 is not 1: read it with the kvtrie that wrote it" in error


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (MOONCAKE[:-1], "line 2 is not a JSON object: cut off after column 73"),
        (MOONCAKE + "x", "line 2 is not a JSON object at column 75, where it says 'x'"),
        ("null", "line 2 is not a JSON object"),
        ("[" * 100_000, "line 2 is not a JSON object that can be read: it is nested too deeply"),
        ('{"timestamp": 0, "hash_ids": [1]}', "line 2 needs 'input_length'"),
    ],
)
def test_a_line_of_a_trace(kvtrie, tmp_path, line, problem):
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{MOONCAKE}\n{line}\n")
    ran = kvtrie("trace", "simulate", str(path))
    assert ran.code == 2
    assert f"trace {path} {problem}" in ran.err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON: cut off after column 1; take one namespace's `fields`"),
        ("[]", "is no JSON object; take one namespace's `fields`"),
        ('{"scope": "a"}', "namespace document has fields missing: salt, model_config"),
    ],
)
def test_a_namespace_document(scene, kvtrie, tmp_path, text, problem):
    path = tmp_path / "namespace.json"
    path.write_text(text)
    ran = kvtrie("explain", scene.file(), "--tokens", "1", "--namespace-json", str(path))
    assert ran.code == 2
    assert str(path) in ran.err
    assert problem in ran.err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"tenant": "a", ', "line 2 is not JSON: cut off after column "),
        ('{"tenant": "a", "user": "b"}', "line 2 must be an object"),
        ("[]", "line 2 must be an object"),
    ],
)
def test_a_line_of_the_demos_input(kvtrie, tmp_path, line, problem):
    path = tmp_path / "requests.jsonl"
    path.write_text(f'{{"tenant": "a", "system": "b", "user": "c"}}\n{line}\n')
    ran = kvtrie("demo", "--input", str(path))
    assert ran.code == 2
    assert problem in ran.err
    assert 'must be an object with the texts "tenant", "system" and "user"' in ran.err
