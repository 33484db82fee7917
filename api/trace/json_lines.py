"""Lines of a plain or gzipped file, each with its number, and errors about one of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.read_json import read_json

_GZIP = b"\x1f\x8b"


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line, blank ones included.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or is a damaged gzip file.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            for number, line in enumerate(gzip.GzipFile(fileobj=raw) if packed else raw, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise wrong(path, number, "is not UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"trace {path} is a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"trace {path} cannot be read: {error.strerror or error}") from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not blank.

    Raises:
        InputError: see `numbered_lines`; also a line that is no JSON object.
    """
    for number, line in numbered_lines(path):
        if line.isspace():
            continue
        try:
            said = read_json(line)
        except InputError as error:
            problem = str(error).removeprefix("is not JSON")
            raise wrong(path, number, f"is not a JSON object{problem}") from None
        if not isinstance(said, dict):
            raise wrong(path, number, "is not a JSON object")
        yield number, said


def wrong(path: Path, number: int, problem: str) -> InputError:
    """The error about one line."""
    return InputError(f"trace {path} line {number} {problem}")


def number_field(said: dict[str, Any], name: str, path: Path, number: int, least: float = 0) -> float:
    """A finite number of at least `least`.

    Raises:
        InputError: it is none.
    """
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 2**62:
        raise wrong(path, number, f"needs {name!r}, a number of at least {least:g}, got {_short(value)}")
    return value


def count_field(said: dict[str, Any], name: str, path: Path, number: int, least: int = 0) -> int:
    """A whole number of at least `least`.

    Raises:
        InputError: it is none.
    """
    value = number_field(said, name, path, number, least)
    if value != int(value):
        raise wrong(path, number, f"needs {name!r}, a whole number, got {_short(value)}")
    return int(value)


def text_field(said: dict[str, Any], name: str, path: Path, number: int) -> str:
    """A string.

    Raises:
        InputError: it is none.
    """
    value = said.get(name)
    if not isinstance(value, str):
        raise wrong(path, number, f"needs {name!r}, a text, got {_short(value)}")
    return value


def id_list(said: dict[str, Any], name: str, path: Path, number: int) -> list[int]:
    """A list of ids, each in 0..2^63-1.

    Raises:
        InputError: it is none.
    """
    value = said.get(name)
    is_list = isinstance(value, list) and all(type(i) is int and 0 <= i < 2**63 for i in value)
    if not is_list:
        raise wrong(path, number, f"needs {name!r}, a list of block ids from 0 to 2^63-1")
    assert isinstance(value, list)
    return value


def _short(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 40 else shown[:39] + "..."
