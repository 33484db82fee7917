"""What goes to the terminal: prompts and names from elsewhere must not be able to drive it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """`text` on one line, without anything a terminal would obey.

    Control characters, bidirectional overrides, lone surrogates and line separators become backslash
    escapes; a backslash of the text itself is doubled, so that the result is unambiguous.
    """
    return "".join(
        _NAMED[char] if char in _NAMED else char if char.isprintable() else _hex(char) for char in text
    )


def safe_lines(text: str) -> str:
    """`text` with its line ends and tabs, and otherwise without anything a terminal would obey.

    Joiners are kept too: emoji and several scripts are written with them.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t\u200c\u200d" else escaped(char) for char in text
    )


def quoted(text: str) -> str:
    """`escaped` in double quotes, those of the text itself escaped too."""
    return '"' + escaped(text).replace('"', '\\"') + '"'


def shortened(text: str, width: int) -> str:
    """At most `width` characters of `text`, with an ellipsis where some are missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def name_text(name: str, width: int = 60) -> str:
    """A scope, tier or pin as one word or one quoted text. Never empty."""
    is_plain = name != "" and name == escaped(name) and not set(name) & set(' "')
    return shortened(name, width) if is_plain else quoted(shortened(name, width))


def speaks_unicode() -> bool:
    """Whether standard output can show box-drawing characters."""
    try:
        "├└│─…".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def write(text: str) -> None:
    """Prints `text` and a line end; see `write_part`."""
    write_part(text + "\n")


def write_part(text: str) -> None:
    """Prints `text` at once; what the output's encoding lacks is escaped. A reader that has gone, as in
    `kvtrie dump | head`, is no error.
    """
    stream = sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # Python flushes once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _hex(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
