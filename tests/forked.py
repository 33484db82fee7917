"""Runs a piece of a test in a forked child."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0


@dataclass
class Child:
    """A forked child at work."""

    pid: int
    pipe: int

    def result(self) -> Any:
        """What the work returned.

        Raises:
            AssertionError: it raised, or did not end.
        """
        end, said = time.monotonic() + SECONDS, b""
        try:
            while True:
                ready, _, _ = select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    os.kill(self.pid, signal.SIGKILL)
                    raise AssertionError("the child hangs")
                piece = os.read(self.pipe, 1 << 16)
                if not piece:
                    break
                said += piece
        finally:
            os.close(self.pipe)
            os.waitpid(self.pid, 0)
        outcome, value = pickle.loads(said)
        assert outcome == "returned", value
        return value


def fork(work: Callable[[], Any]) -> Child:
    """Starts `work` in a child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads, which is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    try:
        try:
            said = ("returned", work())
        except BaseException:
            said = ("raised", traceback.format_exc())
        os.write(writing, pickle.dumps(said))
    finally:
        os._exit(0)
