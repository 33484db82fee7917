"""A plot as a PNG or SVG file, the same bytes for the same data. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvtrie.prefix_tree.errors import InputError

FORMATS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Checks that a plot can be written there, before anything is computed for it.

    Raises:
        InputError: the name ends in no known format, its folder is not there, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path} must end in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None


@contextmanager
def figure_written_to(path: Path, inches: tuple[float, float]) -> Iterator[Any]:
    """Yields an empty figure of matplotlib, and writes it at the end of the block, by the name's ending.

    Raises:
        InputError: see `check_plot`.
        OSError: it cannot be written.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("agg")
    # Names in an SVG would else be new ones each time, and its date too.
    style: Any = {
        "svg.hashsalt": "kvtrie",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=inches, layout="constrained")
        yield figure
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=140, metadata=metadata)
