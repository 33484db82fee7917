"""Hooks on a wrapped model: one forward pass at a time, and ours only where our cache is.

Several wrappers of one model share one lock: with one each, two threads would take them in either order.

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
from kvtrie.api.kv_memory import KvMemory

_Hold = AbstractContextManager[None] | None


class ForwardGate:
    """Installed from construction until `close`."""

    def __init__(self, model: nn.Module, config: Any, memory: KvMemory, lock: threading.RLock) -> None:
        self._config = config
        self._memory = memory
        self.lock = lock
        self._switches: list[_Hold] = []
        """One entry per pass under way, innermost last; only its lock's holder touches it."""
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def close(self) -> None:
        """Takes the hooks off the model."""
        # Not between another thread's `_enter` and `_leave`: that pass would never let go of the lock.
        with self.lock:
            for hook in self._hooks:
                hook.remove()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.lock.acquire()
        # Pushed before anything can fail: `_leave` runs in any case, and takes exactly one entry.
        self._switches.append(None)
        cache = self._own_cache(kwargs)
        if cache is None:
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
            cache = self._own_cache(kwargs)
            if cache is not None:
                cache.finish(output)
        finally:
            self.lock.release()

    def _own_cache(self, kwargs: dict[str, Any]) -> PoolCache | None:
        # By what it is: transformers has renamed the argument before.
        for value in kwargs.values():
            if isinstance(value, PoolCache) and value.memory is self._memory:
                return value
        return None


def lock_of(model: nn.Module) -> threading.RLock:
    """The lock that a model's gates hold during its forward passes; a new one where it has no gate yet."""
    for hook in model._forward_pre_hooks.values():
        gate = getattr(hook, "__self__", None)
        if isinstance(gate, ForwardGate):
            return gate.lock
    return threading.RLock()
