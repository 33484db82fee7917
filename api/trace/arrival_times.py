"""When a trace's requests arrived, whatever they asked for."""

from __future__ import annotations

from pathlib import Path

from kvtrie.api.trace.csv_arrivals import CsvArrivals
from kvtrie.api.trace.open_trace import trace_reader
from kvtrie.prefix_tree.errors import InputError


def arrival_times(path: Path, count: int) -> list[float]:
    """Seconds of the first `count` arrivals of a trace, from the first one, never decreasing.

    Any form that `open_trace` reads; a CSV needs its TIMESTAMP column only.

    Raises:
        InputError: the file is no trace, a line of it is wrong, or it has fewer than `count` requests.
    """
    reader = trace_reader(path)
    if isinstance(reader, CsvArrivals):
        times = sorted(reader.times())
    else:
        times = sorted(request.time_seconds for request in reader.requests())
    if len(times) < count:
        raise InputError(f"trace {path} has {len(times)} requests, and {count} were asked for: ask for fewer")
    return [time - times[0] for time in times[:count]]
