"""What goes wrong on purpose: a lower tier that lies and raises, and a model that raises in its forward pass."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from kvtrie.prefix_tree import Namespace

_RECORDS = 200


class ChaosError(Exception):
    """Raised on purpose: a request may end with it."""


class ChaosExit(SystemExit):
    """Raised on purpose, as an interrupt of the thread it is raised in: no request may end with it."""


class FaultyTier:
    """A lower tier in this process, of bounded size, that fails in one of `faults` calls while it `is_armed`."""

    def __init__(self, seed: int, faults: int = 12) -> None:
        self._chance = random.Random(seed)
        self._faults = faults
        self.is_armed = False
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, namespace: Namespace, keys: Sequence[bytes]) -> Any:
        """Records as a tier should give them, or anything else."""
        with self._lock:
            found: list[bytes] = []
            for key in keys:
                if key not in self._records:
                    break
                found.append(self._records[key])
        if not self.is_armed or self._chance.randrange(self._faults):
            return found
        fault = self._chance.randrange(6)
        if fault == 0:
            raise ChaosError("load")
        if fault == 1:
            raise ChaosExit("load")
        if fault == 2:
            return [None]
        if fault == 3:
            return None
        if fault == 4:
            return [record[: len(record) // 2] for record in found]
        # A record of another chunk under this one's key.
        return found[::-1]

    def offer(self, namespace: Namespace, key: bytes, make: Callable[[], bytes]) -> bool:
        """Keeps a record, or does not."""
        if self.is_armed and self._chance.randrange(self._faults) == 0:
            raise self._chance.choice((ChaosError, ChaosExit))("offer")
        record = make()
        with self._lock:
            self._records[key] = record
            while len(self._records) > _RECORDS:
                self._records.popitem(last=False)
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Nothing is pending."""
        return True

    def stats(self) -> dict[str, int]:
        """Records held."""
        return {"records": len(self._records)}

    def close(self) -> None:
        """Nothing to let go of."""


class FaultyPass:
    """A hook that makes one in `faults` forward passes raise. Registered before the model is wrapped."""

    def __init__(self, seed: int, faults: int = 400) -> None:
        self._chance = random.Random(seed)
        self._faults = faults
        self.is_armed = False

    def __call__(self, *_: Any) -> None:
        if self.is_armed and self._chance.randrange(self._faults) == 0:
            raise self._chance.choice((ChaosError, ChaosExit, MemoryError))("forward")
