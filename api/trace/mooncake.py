"""Mooncake's traces: `{"timestamp", "input_length", "output_length", "hash_ids"}` a line, 512-token blocks.

Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving" (FAST 2025), §4 and the
traces published with it. `timestamp` is in milliseconds. Requests have no sender, so there is one tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvtrie.api.trace.json_lines import count_field, id_list, json_lines, number_field
from kvtrie.api.trace.request import TraceRequest

BLOCK_TOKENS = 512
TENANT = "all"


class MooncakeTrace:
    """See `TraceReader`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def block_tokens(self) -> int:
        """See `TraceReader.block_tokens`."""
        return BLOCK_TOKENS

    @staticmethod
    def is_form(said: dict[str, Any]) -> bool:
        """Whether a trace's first object looks like this form."""
        return "hash_ids" in said

    def requests(self) -> Iterator[TraceRequest]:
        """See `TraceReader.requests`."""
        for number, said in json_lines(self._path):
            at = (self._path, number)
            yield TraceRequest(
                number_field(said, "timestamp", *at) / 1e3,
                TENANT,
                np.array(id_list(said, "hash_ids", *at), np.int64),
                count_field(said, "input_length", *at),
                count_field(said, "output_length", *at),
            )
