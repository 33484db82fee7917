"""Reading kvtrie's own request log, whose form `kvtrie.api.traffic.log_form` describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvtrie.api.trace.json_lines import count_field, id_list, json_lines, number_field, text_field, wrong
from kvtrie.api.trace.request import TraceRequest
from kvtrie.api.traffic.log_form import FORMAT, VERSION, older_half
from kvtrie.prefix_tree.errors import InputError


class RequestLog:
    """See `TraceReader`.

    Raises:
        InputError: the first line is no header of a version this reads.
    """

    def __init__(self, path: Path) -> None:
        older = older_half(path)
        self._paths = [older, path] if older.exists() else [path]
        number, said = next(json_lines(path), (1, {}))
        self._block_tokens = self._header(said, path, number)

    @property
    def block_tokens(self) -> int:
        """See `TraceReader.block_tokens`."""
        return self._block_tokens

    @staticmethod
    def is_form(said: dict[str, Any]) -> bool:
        """Whether a trace's first object looks like this form."""
        return said.get("format") == FORMAT

    def requests(self) -> Iterator[TraceRequest]:
        """See `TraceReader.requests`."""
        for path in self._paths:
            above: dict[int, int] = {}
            for number, said in json_lines(path):
                if "format" in said:
                    if self._header(said, path, number) != self._block_tokens:
                        raise wrong(
                            path, number, f"has other chunks than the {self._block_tokens} tokens before"
                        )
                    above.clear()
                    continue
                yield self._request(said, above, path, number)

    def _request(self, said: dict[str, Any], above: dict[int, int], path: Path, number: int) -> TraceRequest:
        ids = id_list(said, "ids", path, number)
        blocks: list[int] = []
        if "after" in said:
            block = count_field(said, "after", path, number)
            if block not in above:
                raise wrong(path, number, f"comes after block {block}, which no line before it has")
            while block >= 0:
                blocks.append(block)
                block = above[block]
            blocks.reverse()
        for block in ids:
            # The same id at another place is a damaged file; the first place stands.
            above.setdefault(block, blocks[-1] if blocks else -1)
            blocks.append(block)
        asked_to = count_field(said, "to", path, number) if "to" in said else None
        return TraceRequest(
            number_field(said, "t", path, number),
            text_field(said, "who", path, number),
            np.array(blocks, np.int64),
            count_field(said, "in", path, number),
            count_field(said, "out", path, number),
            count_field(said, "from", path, number) if "from" in said else 0,
            asked_to,
        )

    def _header(self, said: dict[str, Any], path: Path, number: int) -> int:
        if said.get("format") != FORMAT:
            raise wrong(path, number, f"is not the header of a {FORMAT}")
        if said.get("version") != VERSION:
            raise InputError(
                f"trace {path} has version {ascii(said.get('version'))[:20]}; this kvtrie reads {VERSION}"
            )
        return count_field(said, "chunk_tokens", path, number, 1)
