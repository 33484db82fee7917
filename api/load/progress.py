"""A live bar on stderr, where that is a terminal and rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvtrie.api.load.run_load import LoadState, Progress


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """What `run_load` takes as `progress`; None where no bar can be shown."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[running]} running, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("requests", total=None, running=0, failed=0)

        def show(state: LoadState) -> None:
            bar.update(
                task,
                total=state.planned,
                completed=state.ended,
                running=state.begun - state.ended,
                failed=state.failed,
            )

        yield show
