"""Wall-clock budget of a run, shared by its processes through one point in time."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """Ends at `ends_at`, in `time.time` seconds, so that child processes can be told."""

    ends_at: float

    @classmethod
    def of(cls, seconds: float) -> Budget:
        """From now on."""
        return cls(time.time() + seconds)

    @property
    def left(self) -> float:
        """Seconds left; negative when overdrawn."""
        return self.ends_at - time.time()

    def minus(self, seconds: float) -> Budget:
        """The same, ending earlier: time kept for what comes after."""
        return Budget(self.ends_at - seconds)
