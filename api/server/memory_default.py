"""Memory for the pool where the user names none."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_PART_OF_HOST = 4
"""A quarter of the memory that is free on the host."""
_PART_OF_DEVICE = 0.8
"""Of a GPU's free memory; activations need the rest."""
_LEAST = 64 << 20
_MOST_ON_HOST = 16 << 30
"""All of the pool is written at the start, so a larger one is only made where it is asked for."""
_CGROUP = Path("/sys/fs/cgroup")


def default_memory(device: torch.device) -> int:
    """Bytes for the pool on `device`, after the model has been loaded; whole MiB."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        size = int(free * _PART_OF_DEVICE)
    else:
        size = min(_free_on_host() // _PART_OF_HOST, _MOST_ON_HOST)
    return max(_LEAST, size >> 20 << 20)


def _free_on_host() -> int:
    """Bytes that this process may still take: of the machine, and of its container."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        available = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        free = int(available) << 10
    # No Linux, or an old one.
    except (OSError, IndexError, ValueError):
        free = max(free, _LEAST)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    # No container, or one without a limit, which reads `max`.
    except (OSError, ValueError):
        return free
    return free
