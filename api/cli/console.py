"""What goes to the terminal: prompts and names from elsewhere must not be able to drive it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

_BETWEEN_FACTS = re.compile(r"(?<=\S)  (?=\S)")
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


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, or `COLUMNS`; None if it is a file or a pipe."""
    try:
        is_terminal = sys.stdout.isatty()
    # Closed.
    except ValueError:
        return None
    return shutil.get_terminal_size().columns if is_terminal else None


def fitted(line: str, columns: int) -> str:
    """At most `columns` cells of a line, with an ellipsis where some are missing."""
    if len(line) * 2 <= columns or sum(map(_cells, line)) <= columns:
        return line
    ellipsis = "…" if speaks_unicode() else "..."
    room = columns - len(ellipsis)
    kept = 0
    for char in line:
        room -= _cells(char)
        if room < 0:
            break
        kept += 1
    return (line[:kept] + ellipsis)[:columns]


def wrapped(line: str, columns: int, indent: int) -> str:
    """A line as several of at most `columns` characters, the later ones indented.

    It is cut between facts, which two spaces part, and within one between words only if it is too long by itself.
    """
    if len(line) <= columns:
        return line
    lines = [""]
    for fact in _BETWEEN_FACTS.split(line):
        longer = f"{lines[-1]}  {fact}" if lines[-1] else fact
        if lines[-1] and len(longer) > columns:
            lines.append(" " * indent + fact)
        else:
            lines[-1] = longer
    return "\n".join(part for long in lines for part in _words_wrapped(long, columns, indent))


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


def _words_wrapped(line: str, columns: int, indent: int) -> list[str]:
    return textwrap.wrap(
        line,
        max(columns, indent + 20),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _cells(char: str) -> int:
    """Columns that a terminal needs for a character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _hex(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
