"""Signal handlers are delayed while bookkeeping is under way, so that none interrupts it half done.

Python runs signal handlers in the main thread, between any two of its instructions. A handler that raises
(KeyboardInterrupt on Ctrl-C, SystemExit in a server's handler of SIGTERM) could end a step when a slot has left the
free list, and before any sequence has it. Other threads run no handlers, so there this does nothing.

An exception that another thread is made to raise with `PyThreadState_SetAsyncExc` cannot be held back: Python
offers no way to.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object]

_USUAL = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
"""Signals on which programs commonly install handlers that raise, as far as the platform has them."""

SIGNALS = tuple(getattr(signal, name) for name in _USUAL if hasattr(signal, name))


class HeldInterrupts:
    """Context in which the main thread's signal handlers do not run; those that were due run at its end.

    May be nested: handlers that are due at the end of an inner context run at the end of the outermost one.
    """

    __slots__ = ("_arrived", "_lifted", "_replaced", "raised")

    def __init__(self) -> None:
        self._replaced: dict[int, Handler] = {}
        """Handlers by signal, each replaced by `_arrive`."""
        self._arrived: dict[int, FrameType | None] = {}
        """Signals whose handlers are due, and the interrupted frame; a signal that arrives twice is due once."""
        self._lifted = False
        self.raised: BaseException | None = None
        """Error raised by a signal handler that ran while handlers were not delayed."""

    def __enter__(self) -> HeldInterrupts:
        if threading.current_thread() is threading.main_thread():
            try:
                for signum in SIGNALS:
                    handler = signal.getsignal(signum)
                    # Neither SIG_DFL nor SIG_IGN, nor one that was not installed from Python.
                    if callable(handler):
                        # Noted before it is replaced: an interrupt between the two leaves nothing behind.
                        self._replaced[signum] = handler
                        signal.signal(signum, self._arrive)
            except BaseException:
                self._let_go()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """A part of this context in which handlers run, due ones first. `raised` has the error that one raised."""
        self._lifted = True
        try:
            while self._arrived:
                self._arrive(*self._arrived.popitem())
            yield
        finally:
            self._lifted = False

    def _arrive(self, signum: int, frame: FrameType | None) -> None:
        if not self._lifted:
            self._arrived[signum] = frame
            return
        try:
            self._replaced[signum](signum, frame)
        except BaseException as error:
            self.raised = error
            raise

    def _let_go(self) -> None:
        handlers = dict(self._replaced)
        try:
            self._put_back()
        finally:
            self._run_due(handlers)

    def _put_back(self) -> None:
        try:
            while self._replaced:
                signum, handler = next(iter(self._replaced.items()))
                signal.signal(signum, handler)
                del self._replaced[signum]
        finally:
            # A handler that is back may have ended the loop.
            if self._replaced:
                self._put_back()

    def _run_due(self, handlers: dict[int, Handler]) -> None:
        """Runs each handler that is due, even if the one before has raised."""
        if self._arrived:
            signum, frame = self._arrived.popitem()
            try:
                handlers[signum](signum, frame)
            finally:
                self._run_due(handlers)
