"""Runs a server as a child of a command, and tells it what the command is told."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from kvtrie.api.cli.console import escaped
from kvtrie.prefix_tree.errors import InputError

GRACE_SECONDS = 15.0
"""What the server gets to end by itself after a signal that ends it; then it is killed."""
_ENDING = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT")
"""Signals that ask for an end."""
_OTHER = ("SIGUSR1", "SIGUSR2")
"""Signals that would end this command, and that a server may have a use of its own for."""
_OF_TERMINALS = ("SIGINT", "SIGQUIT")


def run_server(
    program: Sequence[str], environment: Mapping[str, str], grace_seconds: float = GRACE_SECONDS
) -> int:
    """Runs `program` to its end; its exit code, 128 + n where signal n ended it.

    A signal sent to this process is passed on. One that asks for an end is followed by SIGKILL after
    `grace_seconds`. Ctrl-C in a terminal reaches the server by itself, and may take its time then.
    Signals that are ignored here, as `nohup` does, stay ignored.

    Raises:
        InputError: the program cannot be run.
    """
    told = _Told(grace_seconds)
    with _passing_on(told):
        try:
            process = subprocess.Popen(program, env=environment)
        except OSError as error:
            raise InputError(f"cannot run {escaped(program[0])}: {error.strerror}") from None
        told.started(process)
        try:
            code = process.wait()
        finally:
            told.ended()
    # As a shell tells of a signal.
    return code if code >= 0 else 128 - code


class _Told:
    """What the server has been told. Its methods run in the main thread, between any two of its instructions."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._before_start: list[int] = []
        self._killer: threading.Timer | None = None

    def started(self, process: subprocess.Popen[bytes]) -> None:
        """The server runs, and hears what arrived while it was started."""
        self._process = process
        for number in self._before_start:
            self.passes(number)

    def passes(self, number: int) -> None:
        """A signal has arrived."""
        if self._process is None:
            self._before_start.append(number)
            return
        name = signal.Signals(number).name
        if name in _OF_TERMINALS and _is_of_a_terminal():
            return
        self._process.send_signal(number)
        if name in _ENDING and self._killer is None:
            self._killer = threading.Timer(self._grace_seconds, self._process.kill)
            self._killer.daemon = True
            self._killer.start()

    def ended(self) -> None:
        """The server has ended."""
        if self._killer is not None:
            self._killer.cancel()


@contextmanager
def _passing_on(told: _Told) -> Iterator[None]:
    """Signals of this process go to `told`; only the main thread may change who gets them."""

    def pass_on(number: int, _: FrameType | None) -> None:
        told.passes(number)

    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for name in (*_ENDING, *_OTHER):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, pass_on)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_of_a_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, whose Ctrl-C every process there gets."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    # No terminal at all: a service, a container, a pipeline of CI.
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
