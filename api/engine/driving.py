"""Waiting for an engine's requests: by steps of one's own, or, where an `EngineLoop` runs, for its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtrie.api.engine.completion_events import OnceCallbacks
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.waits import Waits, wait_of_this_thread
from kvtrie.prefix_tree.errors import InputError

if TYPE_CHECKING:
    from kvtrie.api.engine.loop import EngineLoop


class Driving(ABC):
    """What an engine's callers wait with. The engine says how to step, and what is under way."""

    def __init__(self) -> None:
        self.loop: EngineLoop | None = None
        """The loop that steps, or that has failed; None where steps are made by hand."""
        self._waits = Waits()
        """Calls of `wait` and `run` under way."""

    @abstractmethod
    def step(self) -> None:
        """Moves requests on."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing is waiting or running."""

    @abstractmethod
    def owns(self, completion: Completion) -> bool:
        """Whether a completion is of a request that was submitted here."""

    @abstractmethod
    def under_way(self) -> Sequence[Completion]:
        """Completions of all requests that are under way."""

    def run(self) -> None:
        """Steps until idle, or waits until the loop has come to that. Requests that fail carry their errors."""
        waiting = wait_of_this_thread(None)
        try:
            self._waits.begin(waiting)
            while not self.idle:
                loop = self._other_loop()
                if loop is None:
                    self.step()
                    continue
                for completion in self.under_way():
                    loop.wait_for(completion.ended)
                if loop.error is not None:
                    # What is left then, if anything, nobody can move on.
                    return
        finally:
            self._waits.end(waiting)

    def wait(self, completions: list[Completion]) -> None:
        """Steps until all of these are done; others move on with them. Those that fail carry their errors.

        Where an `EngineLoop` runs, this waits for its steps.

        Raises:
            InputError: one of them is not a request of this engine: it would never be done.
        """
        waiting = wait_of_this_thread(completions)
        try:
            self._waits.begin(waiting)
            for completion in filter(self.owns, completions):
                while not completion.done:
                    loop = self._other_loop()
                    if loop is None:
                        self.step()
                    else:
                        loop.wait_for(completion.ended)
        finally:
            self._waits.end(waiting)
        if not all(completion.done for completion in completions):
            raise InputError("wait() was given a request of another engine; wait for it there")

    def wait_for_token(self, completion: Completion, seen: int) -> None:
        """Steps, or waits for the loop, until a completion has more than `seen` tokens, or is done."""
        while not completion.done and len(completion.tokens) <= seen:
            loop = self._other_loop()
            if loop is None:
                self.step()
            else:
                self._wait_for_news(loop, completion, seen)

    def _wait_for_news(self, loop: EngineLoop, completion: Completion, seen: int) -> None:
        waiting, news = wait_of_this_thread([completion]), OnceCallbacks()
        callback = completion.add_token_callback(lambda _: news.call())
        try:
            self._waits.begin(waiting)
            # A token that came before the callback was there is not told of.
            if len(completion.tokens) <= seen:
                loop.wait_for(completion.ended, news)
        finally:
            self._waits.end(waiting)
            completion.discard_token_callback(callback)

    def _other_loop(self) -> EngineLoop | None:
        """The loop that runs in another thread; None where this thread has to step."""
        loop = self.loop
        return loop if loop is not None and loop.is_running and not loop.is_this_thread else None
