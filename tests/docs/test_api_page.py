"""`docs/api.md` is what the docstrings say, has every public class, and describes each of their members."""

from __future__ import annotations

import re

import griffe
import pytest

import kvtrie
from bench import api_page
from kvtrie.prefix_tree import EvictionPolicy
from kvtrie.store import Store

PAGE = api_page.PATH.read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """Text of each heading of level 2 or 3, by the heading."""
    parts = re.split(r"^###? (.*)\n", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def test_page_is_up_to_date() -> None:
    assert api_page.page() == PAGE, "run python -m bench.api_page"


def test_page_has_every_public_class_and_contract() -> None:
    shown = [name for names in api_page.GROUPS.values() for name in names]
    assert sorted(shown) == sorted({*kvtrie.__all__, Store.__name__, EvictionPolicy.__name__})
    assert [name for name in sections() if "." not in name] == [*shown, "Errors"]


def test_imports_that_the_page_shows_work() -> None:
    shown = re.findall(r"^    (from (kvtrie\S*) import (\w+))$", PAGE, re.MULTILINE)
    assert len(shown) == len(sections().keys() - {"Errors"} - {name for name in sections() if "." in name})
    for statement, _, name in shown:
        names: dict[str, object] = {}
        exec(statement, names)
        assert getattr(names[name], "__name__", None) == name


@pytest.mark.parametrize("heading", sections())
def test_each_heading_has_words_below_its_code(heading: str) -> None:
    words = re.sub(r"```.*?```", "", sections()[heading], flags=re.DOTALL)
    words = re.sub(r"^    .*$", "", words, flags=re.MULTILINE)
    assert len(words.split()) >= 2


def test_no_field_and_no_argument_is_without_words() -> None:
    listed = re.findall(r"^\* `.*$", PAGE.partition("\n## ")[2], re.MULTILINE)
    assert len(listed) > 80
    assert [line for line in listed if not re.search(r"`\)?: ?\S", line) and not line.endswith("`):")] == []


def test_a_docstring_of_unknown_form_is_an_error() -> None:
    parser = griffe.Parser("google")
    odd = griffe.Class(
        "Odd", docstring=griffe.Docstring("Odd.\n\nWarns:\n    UserWarning: no.", parser=parser)
    )
    with pytest.raises(ValueError, match="Odd: a part 'warns' of a docstring"):
        list(api_page._docstring(odd))
