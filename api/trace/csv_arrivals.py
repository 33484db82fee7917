"""Arrivals in CSV, as Azure publishes them, with a column for the prompt.

    TIMESTAMP,ContextTokens,GeneratedTokens,prompt[,tenant]

Column names are taken in any case. TIMESTAMP is a date or seconds; the token counts and the tenant may be
missing. Azure's own files (Patel et al., "Splitwise", ISCA 2024) have no prompt: arrivals alone tell nothing of
reuse.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from kvtrie.api.trace.json_lines import numbered_lines, wrong
from kvtrie.api.trace.request import TraceRequest
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import as_tokens, chunk_keys

BLOCK_TOKENS = 64
BYTES_PER_TOKEN = 4
"""Bytes of text counted as a token without a tokenizer: about those of English."""
_TIME, _PROMPT, _TENANT, _IN, _OUT = "timestamp", "prompt", "tenant", "contexttokens", "generatedtokens"

Encode = Callable[[str], Sequence[int]]


class CsvArrivals:
    """See `TraceReader`.

    Args:
        block_tokens: tokens per block.
        encode: the tokens of a prompt; None takes four bytes of text for a token.
    """

    def __init__(self, path: Path, block_tokens: int = BLOCK_TOKENS, encode: Encode | None = None) -> None:
        if block_tokens < 1:
            raise InputError(f"blocks must have at least 1 token, got {block_tokens}")
        self._path = path
        self._block_tokens = block_tokens
        self._encode = encode if encode is not None else _four_bytes_each
        # A prompt of a million tokens is one cell; csv's limit is 128 KiB.
        csv.field_size_limit(1 << 30)

    @property
    def block_tokens(self) -> int:
        """See `TraceReader.block_tokens`."""
        return self._block_tokens

    def requests(self) -> Iterator[TraceRequest]:
        """See `TraceReader.requests`."""
        # A quoted prompt may run over several lines: an error names the line where its row ends.
        at = 0

        def lines() -> Iterator[str]:
            nonlocal at
            for number, line in numbered_lines(self._path):
                at = number
                yield line

        rows = csv.reader(lines(), strict=True)
        columns: dict[str, int] = {}
        try:
            for row in rows:
                if not row:
                    continue
                if not columns:
                    columns = self._columns(row, at)
                    continue
                if len(row) != len(columns):
                    raise wrong(self._path, at, f"has {len(row)} columns, the first line {len(columns)}")
                yield self._request({name: row[place] for name, place in columns.items()}, at)
        except csv.Error as error:
            raise wrong(self._path, at, f"is not CSV: {error}") from None

    def _columns(self, row: Sequence[str], at: int) -> dict[str, int]:
        columns = {name.strip().lower(): place for place, name in enumerate(row)}
        for name, why in ((_TIME, "when requests arrived"), (_PROMPT, "what could be reused")):
            if name not in columns:
                raise wrong(
                    self._path, at, f"names no column {name!r}, which says {why}: is it a trace? Add one"
                )
        if len(columns) != len(row):
            raise wrong(self._path, at, "names a column twice")
        return columns

    def _request(self, row: dict[str, str], at: int) -> TraceRequest:
        tokens = as_tokens(self._encode(row[_PROMPT]))
        keys = b"".join(chunk_keys(b"csv", tokens.tobytes(), self._block_tokens))
        # Half of a chunk key is id enough: a collision moves a figure, not an answer.
        blocks = np.frombuffer(keys, np.int64)[::2] & np.int64(2**63 - 1)
        return TraceRequest(
            self._seconds(row[_TIME], at),
            row.get(_TENANT, "all"),
            blocks,
            self._count(row, _IN, len(tokens), at),
            self._count(row, _OUT, 0, at),
        )

    def _seconds(self, text: str, at: int) -> float:
        try:
            seconds = float(text)
        except ValueError:
            date, dot, fraction = text.strip().partition(".")
            try:
                # Azure writes seven digits of a second; `fromisoformat` takes six.
                moment = datetime.fromisoformat(date + (dot + fraction[:6].ljust(6, "0") if dot else ""))
            except ValueError:
                raise wrong(self._path, at, f"has {text[:40]!a} as its time") from None
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
        if not math.isfinite(seconds):
            raise wrong(self._path, at, f"has {text[:40]!a} as its time")
        return seconds

    def _count(self, row: dict[str, str], name: str, otherwise: int, at: int) -> int:
        text = row.get(name, "").strip()
        if not text:
            return otherwise
        if not text.isascii() or not text.isdigit():
            raise wrong(self._path, at, f"has {text[:40]!a} as {name}")
        return int(text)


def _four_bytes_each(text: str) -> list[int]:
    data = text.encode("utf-8", "surrogatepass")
    # Any int32 that tells four bytes from others; the sign bit is spared.
    return [
        int.from_bytes(data[i : i + BYTES_PER_TOKEN], "little") & 0x7FFFFFFF
        for i in range(0, len(data), BYTES_PER_TOKEN)
    ]
