"""`docs/environment.md` has every environment variable that the product reads, and no other of kvtrie's."""

from __future__ import annotations

import ast
import re

import pytest

from kvtrie.api.byte_size import parse_bytes
from kvtrie.api.traffic.recorder import (
    DEFAULT_BYTES,
    SMALLEST_BYTES,
    TraceRecorder,
    recorder_from_environment,
)
from kvtrie.prefix_tree.checking import checks_wanted
from kvtrie.prefix_tree.errors import InputError
from kvtrie.store import store_key_from_environment
from tests.docs.markdown import code_in, page, rows, section, sources

PAGE = page("environment.md")
OWN = {code_in(row[0])[0]: row for row in rows(section(PAGE, "kvtrie's own"))}
OTHERS = {code_in(row[0])[0] for row in rows(section(PAGE, "Of the packages below"))}


def names_read() -> set[str]:
    """Names that the product passes to `os.environ`, in brackets or to one of its methods, or to `os.getenv`."""
    found = set()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                name = node.slice
            elif (
                isinstance(node, ast.Call)
                and (said := ast.unparse(node.func)).startswith(("os.environ.", "os.getenv"))
                and said != "os.environ.items"
            ):
                name = node.args[0]
            else:
                continue
            value = name.value if isinstance(name, ast.Constant) else constants[ast.unparse(name)]
            assert isinstance(value, str)
            found.add(value)
    return found


def test_the_page_has_what_the_product_reads() -> None:
    read = names_read()
    assert {"KVTRIE_CHECK", "KVTRIE_STORE_KEY", "TRANSFORMERS_VERBOSITY"} <= read, "the search itself works"
    assert {name for name in read if name.startswith("KVTRIE_")} == set(OWN)
    assert {name for name in read if not name.startswith("KVTRIE_")} <= OTHERS


def test_every_name_of_this_kind_in_the_product_is_one_of_them() -> None:
    named = {
        name
        for path in sources()
        for name in re.findall(r"\bKVTRIE_[A-Z_]+", path.read_text(encoding="utf-8"))
        if name != "KVTRIE_"
    }
    assert named == set(OWN)


def test_each_has_a_section_that_names_readers_and_errors() -> None:
    assert re.findall(r"^### (.*)$", PAGE, re.MULTILINE) == sorted(OWN)
    assert PAGE.count("\nWho reads it: ") == PAGE.count("\nOn a bad value: ") == len(OWN)


def test_defaults_and_limits_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    assert code_in(OWN["KVTRIE_CHECK"][1]) == ["0"] and not checks_wanted()
    assert OWN["KVTRIE_STORE_KEY"][1] == "none" and store_key_from_environment() is None
    assert OWN["KVTRIE_TRACE"][1] == "none" and recorder_from_environment(4, "engine") is None
    assert parse_bytes(code_in(OWN["KVTRIE_TRACE_BYTES"][1])[0]) == DEFAULT_BYTES
    assert f"at least {SMALLEST_BYTES} bytes" in OWN["KVTRIE_TRACE_BYTES"][2]


def test_errors_are_those_that_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(PAGE.split())

    def quoted(error: pytest.ExceptionInfo[InputError]) -> str:
        return f"`{error.value}`"

    monkeypatch.setenv("KVTRIE_CHECK", "yes")
    with pytest.raises(InputError) as check:
        checks_wanted()
    monkeypatch.setenv("KVTRIE_STORE_KEY", "short")
    with pytest.raises(InputError) as key:
        store_key_from_environment()
    with pytest.raises(InputError) as log:
        TraceRecorder("/nowhere/log", 4, "engine")
    with pytest.raises(InputError) as limit:
        TraceRecorder("/nowhere/log", 4, "engine", 100)
    with pytest.raises(InputError) as size:
        parse_bytes("much")
    for error in (check, key, log, limit, size):
        assert quoted(error) in text
    monkeypatch.setenv("KVTRIE_STORE_KEY", "")
    with pytest.raises(InputError, match=r"^KVTRIE_STORE_KEY is empty"):
        store_key_from_environment()
