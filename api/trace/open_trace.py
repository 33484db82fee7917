"""Opens a trace file of any form."""

from __future__ import annotations

from pathlib import Path

from kvtrie.api.trace.agent_sessions import AgentSessions
from kvtrie.api.trace.csv_arrivals import BLOCK_TOKENS, CsvArrivals, Encode
from kvtrie.api.trace.json_lines import json_lines, numbered_lines
from kvtrie.api.trace.mooncake import MooncakeTrace
from kvtrie.api.trace.request import TraceReader
from kvtrie.api.trace.request_log import RequestLog
from kvtrie.api.trace.trace import Trace, gather
from kvtrie.prefix_tree.errors import InputError

FORMS = "Mooncake JSONL (hash_ids), agent sessions (runs), a kvtrie request log, or CSV with a prompt column"


def open_trace(path: Path, block_tokens: int = BLOCK_TOKENS, encode: Encode | None = None) -> Trace:
    """Reads the trace at `path`, whichever form it has.

    Args:
        block_tokens: of the blocks that prompts in CSV are cut into; other traces bring their own.
        encode: their tokenizer, see `CsvArrivals`.

    Raises:
        InputError: it cannot be read, has none of the known forms, or a line of it is wrong.
    """
    reader = trace_reader(path, block_tokens, encode)
    return gather(_name(path), reader.block_tokens, reader.requests())


def trace_reader(path: Path, block_tokens: int = BLOCK_TOKENS, encode: Encode | None = None) -> TraceReader:
    """The reader for the form that the file's first line shows.

    Raises:
        InputError: it cannot be read, is empty, or has none of the known forms.
    """
    first = next((line for _, line in numbered_lines(path) if not line.isspace()), None)
    if first is None:
        raise InputError(f"trace {path} is empty")
    if not first.lstrip().startswith("{"):
        return CsvArrivals(path, block_tokens, encode)
    _, said = next(json_lines(path))
    for form in (MooncakeTrace, AgentSessions, RequestLog):
        if form.is_form(said):
            reader: TraceReader = form(path)
            return reader
    raise InputError(f"trace {path} has none of the known forms: {FORMS}")


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name
