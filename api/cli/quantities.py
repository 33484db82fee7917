"""Quantities as people read them."""

from __future__ import annotations

from datetime import datetime, timezone

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def shown_bytes(size_bytes: int) -> str:
    """`1.5 MiB`, in powers of 1024."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in _UNITS:
        size /= 1024
        if abs(size) < 1024:
            break
    return f"{size:.1f} {unit}"


def shown_seconds(seconds: float) -> str:
    """`5 min`: whole units of the largest that fits."""
    if abs(seconds) < 1:
        return "0 s"
    for length, unit in _SPANS:
        if abs(seconds) >= length:
            break
    return f"{seconds / length:.0f} {unit}"


def shown_time(unix_seconds: float) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    try:
        return f"{datetime.fromtimestamp(unix_seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    # A year beyond 9999 is no date, and still worth printing.
    except (OverflowError, ValueError, OSError):
        return f"{unix_seconds:.0f} s after 1970"


def shown_count(count: int, noun: str) -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown_capacity(size_bytes: int) -> str:
    """Bytes, or `unknown`: a tier that cannot tell its capacity says 0."""
    return shown_bytes(size_bytes) if size_bytes else "unknown"
