"""Hooks on a wrapped model: one forward pass at a time, and ours only where our cache is.

A call of the caller's own, `model(...)`, waits its turn and then runs as if nothing were wrapped. A pass of
Hugging Face's generate loop over a `PoolCache` gets the step as a keyword and our attention, for that pass.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from kvtrie.api.attention_switch import KEYWORD, attention_switched
from kvtrie.api.hf_cache import PoolCache

_Hold = AbstractContextManager[None] | None


class ForwardGate:
    """Installed from construction until `close`."""

    def __init__(self, model: nn.Module, config: Any, lock: threading.RLock) -> None:
        self._config = config
        self._lock = lock
        self._switches: list[_Hold] = []
        """One entry per pass under way, innermost last; only its lock's holder touches it."""
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def close(self) -> None:
        """Takes the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._lock.acquire()
        # Pushed before anything can fail: `_leave` runs in any case, and takes exactly one entry.
        self._switches.append(None)
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, PoolCache):
            return None
        inputs = dict(kwargs)
        inputs[KEYWORD] = cache.begin(inputs)
        switch = attention_switched(self._config)
        switch.__enter__()
        self._switches[-1] = switch
        return args, inputs

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        try:
            switch = self._switches.pop()
            if switch is not None:
                switch.__exit__(None, None, None)
            cache = kwargs.get("past_key_values")
            if isinstance(cache, PoolCache):
                cache.finish(output)
        finally:
            self._lock.release()
