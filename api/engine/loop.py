"""A thread that runs an engine: it steps while there is work, and sleeps while there is none."""

from __future__ import annotations

import logging
import threading
import time
from enum import Enum

from kvtrie.api.engine.completion_events import OnceCallbacks
from kvtrie.api.engine.engine import Engine
from kvtrie.prefix_tree.errors import EngineStopped, InputError

_TURN_SECONDS = 1e-5
"""Slept between steps: a thread that waits for the engine's lock, e.g. in `generate`, would seldom get it from one
that takes it again at once."""

_LOG = logging.getLogger(__name__)


class _Until(Enum):
    """How long the loop goes on."""

    STOPPED = "until it is told to stop"
    IDLE = "until no request is under way"
    STEP_ENDS = "until the step ends that is under way"


class EngineLoop:
    """Steps one engine in a thread of its own, from `start` to `stop`.

    Requests are submitted to the engine as ever. `Engine.wait`, `run` and streams wait for this loop meanwhile.

    An exception that is no request's own, such as a broken invariant, ends the loop: `failed` is set, and `error`
    has what was raised. Requests under way end with `EngineStopped`, and later ones are refused with it.

    Args:
        engine: what to run. It has one loop at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._until = _Until.STOPPED
        self._was_idle = True
        """Whether nothing was under way when it ended."""
        self.failed = threading.Event()
        """Set once the loop has ended with an error. May be waited for."""
        self.error: BaseException | None = None
        """What ended the loop."""
        self.is_closed = False
        """The last requests are being ended: one that is submitted from now on is overlooked."""
        self.ended = OnceCallbacks()
        """Called once the loop has ended, either way, in its thread. No request is under way by then."""

    def start(self) -> None:
        """Starts the thread.

        Raises:
            InputError: this loop was started before, or the engine has another one.
        """
        with self._engine.lock:
            if self._thread is not None:
                raise InputError("this loop was started before; make another one")
            if self._engine.loop is not None:
                raise InputError("the engine has a loop already; stop that one first")
            self._thread = threading.Thread(target=self._run, name="kvtrie engine", daemon=True)
            self._engine.loop = self
            self._thread.start()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Ends the loop. The engine may be stepped by hand afterwards, or get another loop.

        Args:
            drain: lets requests under way come to their end first; new ones are refused meanwhile. Otherwise they
                are cancelled at the end of the step that is under way.
            timeout: seconds to drain for; what is still under way then is cancelled. None for no end.

        Returns:
            Whether every request came to its own end.

        Raises:
            InputError: called in the loop's own thread, e.g. by a callback.
        """
        if self._thread is None:
            return True
        if self.is_this_thread:
            raise InputError("stop() was called in the loop's own thread; call it in another one")
        if drain and self._until is _Until.STOPPED:
            self._until = _Until.IDLE
            self._wake.set()
            self._thread.join(timeout)
        self._until = _Until.STEP_ENDS
        self._wake.set()
        self._thread.join()
        return self._was_idle and self.error is None

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and has not ended: nobody else need step."""
        return self._thread is not None and not self.ended.has_come

    @property
    def is_this_thread(self) -> bool:
        """Whether this is called in the loop's own thread."""
        return threading.current_thread() is self._thread

    def check_open(self) -> None:
        """Whether requests may be submitted.

        Raises:
            EngineStopped: the loop has failed, or is about to end.
        """
        if self.error is not None:
            raise EngineStopped(f"the engine has failed and serves no more: {self.error!r}") from self.error
        if self._until is not _Until.STOPPED:
            raise EngineStopped("the engine is about to stop, and takes no more requests")

    def wake(self) -> None:
        """There is work. May be called in any thread."""
        if not self._wake.is_set():
            self._wake.set()

    def wait_for(self, *events: OnceCallbacks) -> None:
        """Waits until one of these has come, or this loop has ended."""
        come = threading.Event()
        awaited = (*events, self.ended)
        for event in awaited:
            event.add(come.set)
        try:
            come.wait()
        finally:
            for event in awaited:
                event.discard(come.set)

    def _run(self) -> None:
        engine = self._engine
        try:
            self._step_on()
        except BaseException as error:
            self._failed_by(error)
        try:
            self._was_idle = engine.idle
            # Before requests are ended: whoever submits one after that sees it.
            self.is_closed = True
            if self.error is None:
                engine.cancel_all()
        except BaseException as error:
            self._failed_by(error)
        try:
            if self.error is None:
                engine.loop = None
            else:
                engine.end_all(self.error)
        finally:
            self.ended.call()

    def _step_on(self) -> None:
        engine = self._engine
        while self._until is _Until.STOPPED or (self._until is _Until.IDLE and not engine.idle):
            self._wake.clear()
            while not engine.idle and not self._halts:
                engine.step()
                time.sleep(_TURN_SECONDS)
            if self._until is _Until.STOPPED:
                self._wake.wait()

    @property
    def _halts(self) -> bool:
        return self._until is _Until.STEP_ENDS

    def _failed_by(self, error: BaseException) -> None:
        _LOG.critical("the engine's loop has failed", exc_info=error)
        self.error = error
        self.failed.set()
