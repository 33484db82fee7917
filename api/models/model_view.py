"""A second view of a model's modules, in which attention is kvtrie's.

A view shares the model's parameters, buffers, hooks and most of its modules. Only modules that read a config
(attention layers, the decoder, which builds masks) and the modules above them are doubled, because their config
names the attention function. Rotary modules whose frequencies depend on the longest position are copied: they
rewrite their buffers at every pass. So kvtrie's passes never change the model: calls of its owner, `generate`
among them, keep their own attention in whatever thread they run, and an interrupted pass leaves nothing to put
back.

    model            view
    root  ---------> root'         doubled: holds a module that reads a config
      decoder ------> decoder'     doubled: reads the config
        layer ------> layer'
          attention -> attention'  doubled: its private config names kvtrie's attention
            q_proj <-- q_proj      shared: the same object, adapters included
          norm <------ norm        shared
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any
from weakref import ref

from torch import nn
from transformers import AttentionInterface, PreTrainedConfig

from kvtrie.api.models.layer_attention import KEYWORD, NAME, layer_attention
from kvtrie.api.models.model_state import version
from kvtrie.api.models.rope import depends_on_length

WAY_OUT = "Install a version that `kvtrie doctor` lists as tested, or use submit() and stream()"
"""Remedy for an installed library that works in a way that kvtrie was not written for."""


class PassRunner:
    """An argument of the root's forward that runs the pass it is handed to: the cache of a `generate` call."""

    def run_pass(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls `forward`, with what it needs added to or taken from `kwargs`, and returns its output."""
        raise NotImplementedError


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Attributes of a module that hold its hooks."""


@dataclass(frozen=True, slots=True)
class _Double:
    """A module of the model, and its double in the view."""

    original: nn.Module
    module: nn.Module
    own: dict[str, Any]
    """Attributes in which the two differ."""
    children: tuple[nn.Module | None, ...]
    """The original's submodules when the view was made."""


class ModelView:
    """The view of one model. `root` is called as the model is; it takes over what changed in the model first."""

    def __init__(self, model: nn.Module) -> None:
        AttentionInterface.register(NAME, layer_attention)
        self.model = model
        self._doubles: list[_Double] = []
        self._copied: list[tuple[nn.Module, object]] = []
        """Modules that the view has a copy of, each with what it was made of."""
        self._configs: list[tuple[Any, dict[str, Any]]] = []
        """The view's configs, each with its entries."""
        self.root: Any = None
        """The view's own root module: call it, or its `generate`."""
        self._build()

    @property
    def config(self) -> Any:
        """The view's private text config, which names kvtrie's attention."""
        return self.root.config.get_text_config(decoder=True)

    def sync(self) -> bool:
        """Takes over what changed in the model since: attributes, replaced submodules, added adapters.

        Parameters, buffers and hooks are shared and need no sync. True where submodules changed and `root` is new.
        """
        if any(tuple(d.original._modules.values()) != d.children for d in self._doubles) or any(
            _made_of(module) != before for module, before in self._copied
        ):
            self._build()
            return True
        for double in self._doubles:
            state = {**double.original.__dict__, **double.own}
            if "forward" in double.original.__dict__ and "forward" not in double.own:
                state["forward"] = _rebound(state["forward"], double)
            # One assignment, so that another thread that reads the module never sees half a state.
            object.__setattr__(double.module, "__dict__", state)
        return False

    def restore_configs(self) -> None:
        """Takes back what a `generate` of the root wrote into the view's configs, and did not undo."""
        for config, entries in self._configs:
            if config.__dict__ != entries:
                config.__dict__.clear()
                config.__dict__.update(entries)

    def _build(self) -> None:
        self._doubles = []
        self._copied = []
        memo: dict[int, Any] = {}
        root = self._double(self.model, memo)
        text = root.config.get_text_config(decoder=True)
        for double in self._doubles:
            for value in double.own.values():
                # A layer of another model may have been put into this one: it brings a config of its own.
                if type(value) is type(text):
                    # The public setter validates and logs; this is the field that every layer reads.
                    value._attn_implementation_internal = NAME
        text._attn_implementation_internal = NAME
        double = self._doubles[-1]
        # Neither the view nor its root is named by it: in a cycle, the model would stay until a garbage collection.
        wrapper = partial(_forward_of, ref(self))
        # Transformers asks this one's signature, as it would ask the model's own.
        wrapper.__signature__ = inspect.signature(self.model.forward)  # type: ignore[attr-defined]
        double.own["forward"] = wrapper
        self.root = root
        own = {
            id(value): value
            for d in self._doubles
            for value in d.own.values()
            if isinstance(value, PreTrainedConfig)
        }
        self._configs = [(config, dict(config.__dict__)) for config in own.values()]
        self.sync()

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the root's forward. `kwargs` have a step's attention, or the cache of a `generate` call."""
        if self.sync():
            return self.root(*args, **kwargs)
        double = self._doubles[-1]
        own = self.model.__dict__.get("forward")
        forward = MethodType(type(self.root).forward, self.root) if own is None else _rebound(own, double)
        for value in kwargs.values():
            # Found by what it is: transformers has renamed the argument before.
            if isinstance(value, PassRunner):
                return value.run_pass(forward, args, kwargs)
        if KEYWORD not in kwargs:
            # A pass that is not over kvtrie's cache, e.g. one of guidance by a negative prompt.
            return self.model(*args, **kwargs)
        return forward(*args, **kwargs)

    def _double(self, module: nn.Module, memo: dict[int, Any]) -> Any:
        """The module's double, or the module itself where neither it nor one below it reads a config."""
        # 1. Modules seen before, and those whose frequencies change with each pass.
        if id(module) in memo:
            return memo[id(module)]
        if depends_on_length(module):
            # Its frequencies change with the longest position of each pass: passes of the model's owner must not
            # meet ours. Copied whole, and copied again when what it computes them from has changed.
            memo[id(module)] = copied = copy.deepcopy(module, memo)
            for hooks in _HOOKS:
                copied.__dict__[hooks] = module.__dict__[hooks]
            self._copied.append((module, _made_of(module)))
            return copied
        # 2. The module itself, if neither it nor one below it reads a config.
        children = {name: child and self._double(child, memo) for name, child in module._modules.items()}
        configs = {
            name: copy.deepcopy(value, memo)
            for name, value in module.__dict__.items()
            if isinstance(value, PreTrainedConfig)
        }
        is_shared = all(child is module._modules[name] for name, child in children.items())
        if is_shared and not configs and module is not self.model:
            memo[id(module)] = module
            return module
        # 3. A double over the same parameters, buffers and hooks, with its own children and configs.
        double = module.__class__.__new__(module.__class__)
        memo[id(module)] = double
        # A compiled call is bound to the original.
        own = {"_modules": children, "_compiled_call_impl": None, **configs}
        entry = _Double(module, double, own, tuple(module._modules.values()))
        for name, value in module.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is module and name != "forward":
                own[name] = MethodType(value.__func__, double)
        object.__setattr__(double, "__dict__", {**module.__dict__, **own})
        self._doubles.append(entry)
        return double


def _rebound(forward: Any, double: _Double) -> Any:
    """An instance's own `forward`, for the double where it is a method of the original."""
    if isinstance(forward, MethodType) and forward.__self__ is double.original:
        return MethodType(forward.__func__, double.module)
    if isinstance(forward, partial) and forward.args[:1] == (double.original,):
        # As accelerate replaces a forward.
        return partial(forward.func, double.module, *forward.args[1:], **forward.keywords)
    return forward


def _made_of(module: nn.Module) -> object:
    """Inputs from which a module computes its frequencies, for comparison."""
    originals = [
        (b.data_ptr(), version(b)) for n, b in module._buffers.items() if b is not None and "original" in n
    ]
    floats = [(name, value) for name, value in module.__dict__.items() if isinstance(value, float)]
    return originals, floats, module.__dict__.get("forward")


def _forward_of(view: ref[ModelView], *args: Any, **kwargs: Any) -> Any:
    found = view()
    assert found is not None, "the view is gone"
    return found.forward(args, kwargs)
