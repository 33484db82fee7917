"""Runs a server until it is told to stop, or its engine fails."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from kvtrie.api.http.address import Address
from kvtrie.api.http.connection_table import ConnectionTable
from kvtrie.api.http.door import Door
from kvtrie.api.http.http_server import server_config, surviving_signals, within_open_files
from kvtrie.api.http.listeners import Listener, check_addresses, listening
from kvtrie.api.http.tenants import Tenants
from kvtrie.api.huggingface.cached_model import PrefixCachedModel
from kvtrie.api.server.answered_chats import AnsweredChats
from kvtrie.api.server.app import create_app
from kvtrie.api.server.checked_request import Served
from kvtrie.api.server.generation import Generation
from kvtrie.api.server.prompts import PromptText
from kvtrie.api.server.serve_metrics import ServeMetrics
from kvtrie.api.server.served_model import ServedModel
from kvtrie.api.server.server_config import ServerConfig

METRICS_PREFIX = "kvtrie_serve"
"""Of the figures about connections; those of requests begin with `kvtrie_`."""


def serve(
    model: PrefixCachedModel,
    tenants: Tenants,
    addresses: Sequence[Address],
    config: ServerConfig,
    announce: Callable[[list[Listener]], None],
) -> int:
    """Serves until SIGTERM or SIGINT, lets requests finish, and removes socket files; the exit code.

    It is 0 after one signal, also where requests had to be cancelled at the end of `drain_seconds`; 1 if the engine
    failed. A second signal ends the process at once, with 128 + its number.

    Args:
        model: the caller's to close.
        tenants: whose keys are let in, as what scope.
        addresses: where to listen.
        config: names and limits.
        announce: called once the sockets accept connections.

    Raises:
        InputError: it may not, or cannot, listen on one of `addresses`.
    """
    check_addresses(addresses, with_tenants=not tenants.is_open)
    connections = ConnectionTable(within_open_files(config.limits))
    generation = Generation(model)
    served = ServedModel(
        config,
        generation,
        Served(
            names=config.names,
            longest=model.longest_sequence,
            vocabulary=model.vocabulary,
            generation_config=model.generation_config,
            text=PromptText(model.tokenizer),
            chats=AnsweredChats(config.chat_bytes),
        ),
        Door(tenants, connections, config.receive_bytes, METRICS_PREFIX),
        ServeMetrics(config.names[0]),
    )
    with listening(addresses) as listeners, surviving_signals():
        app = create_app(served)
        server = _Server(server_config(app, connections, config.drain_seconds), generation, config)
        generation.start()
        announce(listeners)
        server.run(sockets=[listener.socket for listener in listeners])
    if server.second_signal is not None:
        # The engine's thread may be in the middle of a long step, which nothing interrupts.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + server.second_signal)
    generation.stop()
    return 1 if generation.has_failed else 0


class _Server(uvicorn.Server):
    """uvicorn, which also stops where the engine has failed, and at once after a second signal."""

    def __init__(self, config: uvicorn.Config, generation: Generation, ours: ServerConfig) -> None:
        super().__init__(config)
        self._generation = generation
        self._failed_seconds = ours.failed_seconds
        self._failed_at: float | None = None
        self.second_signal: int | None = None
        """Its number; None where there was none."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if self._generation.is_draining and sig in (signal.SIGTERM, signal.SIGINT):
            self.second_signal = sig
            self.force_exit = True
        self._generation.is_draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn; called ten times a second."""
        if self._generation.has_failed:
            now = time.monotonic()
            self._failed_at = self._failed_at or now
            if now - self._failed_at >= self._failed_seconds:
                self.should_exit = True
        return await super().on_tick(counter)
