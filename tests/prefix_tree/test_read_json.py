"""JSON that is none, in our words."""

from __future__ import annotations

import pytest

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.read_json import read_json


def test_json_is_read():
    assert read_json('{"a": [1, null]}') == {"a": [1, None]}
    assert read_json(b'\xef\xbb\xbf{"a": "\xc3\xbc"}') == {"a": "ü"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is empty"),
        (" \n", "is empty"),
        (b"\xff\xfe{}", "is not UTF-8 text at byte 0"),
        ('{"a": 1,\n "b": nothing}', "is not JSON at line 2, column 7, where it says 'nothing}'"),
        ("hello", "is not JSON at column 1, where it says 'hello'"),
        ("{} {}", "is not JSON at column 4, where it says '{}'"),
        ('{"a": [1, 2', "is not JSON: cut off after column 11"),
        ('{"a": [1, 2]\n', "is not JSON: cut off after column 12"),
        ('{\n"a": "some te', "is not JSON: cut off after line 2, column 13"),
        ("\x1b[2J" * 20, "is not JSON at column 1, where it says '\\x1b[2J\\x1b[2J\\x1b[2J\\x1b[2J\\x1b[2J'"),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ("[" + "9" * 10_000 + "]", "is not JSON that can be read: a number in it is too long"),
    ],
)
def test_what_is_wrong(text, problem):
    with pytest.raises(InputError) as caught:
        read_json(text)
    assert str(caught.value) == problem
