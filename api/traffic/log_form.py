"""kvtrie's own request log, as `TraceRecorder` writes it: JSON lines of ids and counts, without texts.

    {"format": "kvtrie-trace", "version": 1, "chunk_tokens": 64, "source": "engine"}
    {"t": 1767225600.125, "who": "t-5f0c...", "in": 530, "out": 12, "ids": [first, ..., last]}
    {"t": 1767225601.250, "who": "t-5f0c...", "in": 600, "out": 8, "after": last, "ids": [next]}

| field | what |
| --- | --- |
| `t` | when it arrived, unix seconds |
| `who` | pseudonym of a scope |
| `in`, `out` | prompt and completion tokens |
| `after` | a block of an earlier line: this path begins with the whole path to it, then comes `ids` |
| `ids` | 62-bit ids of blocks, each of everything up to its end |
| `from`, `to` | blocks `from..to` of the path were asked for, default all; later ones it computed itself |

A header may come again: the process was started again, with other ids. `FILE.1` is the older half of `FILE`.
"""

from __future__ import annotations

from pathlib import Path

FORMAT = "kvtrie-trace"
VERSION = 1


def older_half(path: Path) -> Path:
    """Path that a full log is renamed to, before its next half is begun."""
    return path.with_name(path.name + ".1")
