"""Quantities as people read them."""

from __future__ import annotations

from datetime import datetime, timezone

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def shown_bytes(size_bytes: int) -> str:
    """`1.5 MiB`, in powers of 1024."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    # What would be shown as 1024.0 of a unit is 1.0 of the next.
    rounded_up = 1023.95
    power = next((i for i in range(1, len(_UNITS)) if abs(size_bytes) < rounded_up * 1024**i), len(_UNITS))
    return f"{size_bytes / 1024**power:.1f} {_UNITS[power - 1]}"


def shown_seconds(seconds: float) -> str:
    """`5 min`: whole units of the largest that fits."""
    length, unit = next((span for span in _SPANS if abs(seconds) >= span[0]), _SPANS[-1])
    return f"{seconds / length:.0f} {unit}"


def shown_duration(seconds: float) -> str:
    """`35 ms`, `1.2 s`, `90 s`, `5 min`: two digits below ten seconds."""
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds * 1e3:.0f} ms"
    return (
        f"{seconds:.1f} s"
        if seconds < 9.95
        else f"{seconds:.0f} s"
        if seconds < 120
        else shown_seconds(seconds)
    )


def shown_time(unix_seconds: float) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    try:
        return f"{datetime.fromtimestamp(unix_seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    # A year beyond 9999 is no date, and still worth printing.
    except (OverflowError, ValueError, OSError):
        return f"{unix_seconds:.0f} s after 1970"


def shown_count(count: int, noun: str) -> str:
    """`1 chunk`, `2 chunks`, `1,024 chunks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
