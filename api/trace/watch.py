"""What a server tells of each request once it is through: to the log, if one is kept, and to the what-if curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtrie.api.trace.recorder import recorder_from_environment
from kvtrie.api.trace.what_if import WhatIf

if TYPE_CHECKING:
    from kvtrie.api.request import Completion
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
        """One that keeps no log, whatever the environment asks for."""
        watch = cls.__new__(cls)
        watch._chunk_tokens = chunk_tokens
        watch.recorder = None
        watch.what_if = WhatIf()
        return watch

    def completed(self, completion: Completion, path: Sequence[Node]) -> None:
        """The engine is through with a request whose whole chunks, computed ones included, are `path`."""
        request = completion.request
        asked = min(len(path), len(request.tokens) // self._chunk_tokens)
        scope = request.root.scope
        self.what_if.observe(scope, path, asked)
        if self.recorder is not None:
            self.recorder.record(
                scope,
                [node.key for node in path],
                prompt_tokens=len(request.tokens),
                output_tokens=len(completion.tokens),
                arrived_at=time.time() - (time.perf_counter() - completion.submitted_at),
                asked_to=asked,
            )

    def asked(self, scope: str, above: Sequence[bytes], keys: Sequence[bytes]) -> None:
        """The sidecar was asked for chunks by `keys`; `above` are those before them on the path, if known."""
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
