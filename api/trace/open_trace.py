"""Finding out which form a trace file has."""

from __future__ import annotations

from pathlib import Path

from kvtrie.api.trace.agent_sessions import AgentSessions
from kvtrie.api.trace.csv_arrivals import CsvArrivals
from kvtrie.api.trace.lines import json_lines, numbered_lines
from kvtrie.api.trace.mooncake import MooncakeTrace
from kvtrie.api.trace.request import TraceReader
from kvtrie.api.trace.request_log import RequestLog
from kvtrie.api.trace.trace import Trace, gather
from kvtrie.prefix_tree.errors import InputError

FORMS = "Mooncake JSONL (hash_ids), agent sessions (runs), a kvtrie request log, or CSV with a prompt column"


def open_trace(path: Path) -> Trace:
    """Reads the trace at `path`, whichever form it has.

    Raises:
        InputError: it cannot be read, has none of the known forms, or a line of it is wrong.
    """
    reader = trace_reader(path)
    return gather(_name(path), reader.block_tokens, reader.requests())


def trace_reader(path: Path) -> TraceReader:
    """The reader for the form that the file's first line shows.

    Raises:
        InputError: it cannot be read, is empty, or has none of the known forms.
    """
    first = next(numbered_lines(path), None)
    if first is None:
        raise InputError(f"trace {path} is empty")
    if not first[1].lstrip().startswith("{"):
        return CsvArrivals(path)
    _, said = next(json_lines(path))
    for form in (MooncakeTrace, AgentSessions, RequestLog):
        if form.is_form(said):
            reader: TraceReader = form(path)
            return reader
    raise InputError(f"trace {path} has none of the known forms: {FORMS}")


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name
