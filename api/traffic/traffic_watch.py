"""Passes each request that has ended to the log, if there is one, and to the what-if curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtrie.api.traffic.recorder import recorder_from_environment
from kvtrie.api.traffic.what_if import WhatIf

if TYPE_CHECKING:
    from kvtrie.prefix_tree import Node


class TrafficWatch:
    """Sees the engine's or the sidecar's requests. Thread-safe; nothing it does fails a request.

    Raises:
        InputError: `KVTRIE_TRACE` or `KVTRIE_TRACE_BYTES` cannot be used.
    """

    def __init__(self, chunk_tokens: int, source: str) -> None:
        self._chunk_tokens = chunk_tokens
        self.recorder = recorder_from_environment(chunk_tokens, source)
        self.what_if = WhatIf()

    @classmethod
    def unrecorded(cls, chunk_tokens: int) -> TrafficWatch:
        """A watch without a log, whatever KVTRIE_TRACE is."""
        watch = cls.__new__(cls)
        watch._chunk_tokens = chunk_tokens
        watch.recorder = None
        watch.what_if = WhatIf()
        return watch

    def completed(
        self, scope: str, prompt_tokens: int, output_tokens: int, submitted_at: float, path: Sequence[Node]
    ) -> None:
        """Notes a request that the engine has ended.

        Args:
            scope: of the request.
            prompt_tokens: of its prompt.
            output_tokens: of its completion.
            submitted_at: `time.perf_counter` seconds.
            path: its whole chunks, computed ones included.
        """
        asked = min(len(path), prompt_tokens // self._chunk_tokens)
        self.what_if.observe(scope, path, asked)
        if self.recorder is not None:
            self.recorder.record(
                scope,
                [node.key for node in path],
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                arrived_at=time.time() - (time.perf_counter() - submitted_at),
                asked_to=asked,
            )

    def asked(self, scope: str, above: Sequence[bytes], keys: Sequence[bytes]) -> None:
        """Notes a get of chunks by `keys` from the sidecar; `above` are those before them on the path, if known."""
        self.what_if.observe(scope, keys)
        if self.recorder is not None:
            self.recorder.record(
                scope,
                [*above, *keys],
                prompt_tokens=(len(above) + len(keys)) * self._chunk_tokens,
                output_tokens=0,
                arrived_at=time.time(),
                asked_from=len(above),
            )

    def close(self) -> None:
        """Closes the log."""
        if self.recorder is not None:
            self.recorder.close()
