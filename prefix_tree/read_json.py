"""Reads JSON, and says in one clause what is wrong with a text that is none."""

from __future__ import annotations

import json
from typing import Any

from kvtrie.prefix_tree.errors import InputError

_SHOWN_CHARACTERS = 20


def read_json(text: str | bytes) -> Any:
    """The value that `text` is, in UTF-8 where it is bytes.

    Raises:
        InputError: it is not JSON. The message is a predicate, such as `is not JSON: cut off after column 7`, for
            the name of the file to be put before it.
    """
    # 1. Text.
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 text at byte {error.start}") from None
    text = text.rstrip()
    if not text:
        raise InputError("is empty")
    # 2. JSON.
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        # A string without its end is reported where it begins.
        if not rest or error.msg.startswith("Unterminated string"):
            raise InputError(f"is not JSON: cut off after {_place(text, len(text) - 1)}") from None
        shown = ascii(rest[:_SHOWN_CHARACTERS].split("\n")[0])
        raise InputError(f"is not JSON at {_place(text, error.pos)}, where it says {shown}") from None
    # A number of thousands of digits, which Python refuses to read.
    except ValueError:
        raise InputError("is not JSON that can be read: a number in it is too long") from None
    except RecursionError:
        raise InputError("is not JSON that can be read: it is nested too deeply") from None


def _place(text: str, position: int) -> str:
    """Line and column of a character, from 1; the column alone in a text of one line."""
    column = position - text.rfind("\n", 0, position)
    if "\n" not in text:
        return f"column {column}"
    lines = text.count("\n", 0, position)
    return f"line {lines + 1}, column {column}"
