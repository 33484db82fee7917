"""The tree of errors drawn in errors.py is the tree of errors there is."""

from __future__ import annotations

import inspect
import re

import pytest

import kvtrie.prefix_tree as package
from kvtrie.prefix_tree import InputError, KvtrieError, RecordError, errors


def drawn() -> dict[str, list[str]]:
    """Bases of each error by name, as the docstring's drawing has them."""
    bases: dict[str, list[str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ((?:│   |    |├── |└── )*)(\w+)(?: \((\w+)\))?(?:  |$)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        del above[depth:]
        bases[found[2]] = [above[-1] if above else "Exception"] + ([found[3]] if found[3] else [])
        above.append(found[2])
    return bases


def real() -> dict[str, list[str]]:
    return {
        name: [base.__name__ for base in cls.__bases__]
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }


def test_the_drawing_is_the_hierarchy() -> None:
    assert drawn() == real()
    assert len(real()) > 10


def test_every_error_has_the_one_root_and_a_docstring() -> None:
    for name in real():
        cls = getattr(errors, name)
        assert issubclass(cls, KvtrieError)
        assert cls.__doc__


def test_every_error_can_be_imported_from_the_package() -> None:
    for name in real():
        assert getattr(package, name) is getattr(errors, name)
        assert name in package.__all__


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_a_record_error_carries_its_reason() -> None:
    error = RecordError("checksum", "stored 1, computed 2")
    assert error.reason == "checksum"
    assert str(error) == "checksum: stored 1, computed 2"
    with pytest.raises(KvtrieError, match="checksum"):
        raise error
