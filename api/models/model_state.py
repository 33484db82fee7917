"""State of a model that is compared at every step: addresses and versions of tensors, settings, hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from kvtrie.api.models.rope import depends_on_length

_HARMLESS_HOOKS = frozenset({"transformers.utils.output_capturing"})
"""Modules whose hooks only read: transformers installs them at the first call that asks for hidden states."""

_WATCHED = frozenset({"sliding_window"})
"""Attributes that are watched whatever their type; all floats are: epsilons, scalings, multipliers."""


class ModelState(NamedTuple):
    """A model's state. Two equal ones compute the same, as far as a comparison at every step can see.

    Not seen: writes through `.data`, changes of attributes that are no floats, and what a hook itself remembers.
    """

    tensors: tuple[tuple[int, int], ...]
    """`(data_ptr, _version)` of every parameter and buffer."""
    settings: tuple[object, ...]
    """Values of the watched attributes."""
    replaced: tuple[int, ...]
    """Serial numbers of hooks and of replaced `forward`s, each after its module's place; of global hooks, too."""


class StateReader:
    """Reads one model's state at every step, so over lists made once: a walk takes several times as long."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts: _Parts | None = None
        self._serials = _Serials()
        self._forwards: dict[type[Any], Any] = {}
        """The `forward` of each class of modules when it was first seen."""

    def forget(self) -> None:
        """Makes the next `read` look for the model's modules anew."""
        self._parts = None

    def read(self) -> ModelState:
        """The model's present state."""
        # 1. Where the state is kept; looked for anew if a submodule was added, removed or replaced.
        parts = self._parts
        if parts is None or not parts.are_all():
            parts = self._parts = _Parts.of(self._model)
            for module in parts.modules:
                self._forwards.setdefault(type(module), type(module).forward)
        # 2. Parameters and buffers: storage and count of writes.
        tensors = [
            tensor for tensor in chain.from_iterable(map(dict.values, parts.tensors)) if tensor is not None
        ]
        tensors += parts.originals
        try:
            states = tuple([(tensor.data_ptr(), tensor._version) for tensor in tensors])
        except RuntimeError:
            states = tuple([(tensor.data_ptr(), version(tensor)) for tensor in tensors])
        # 3. Hooks and replaced forwards, then watched attributes.
        replaced = [self._serials.of(hook) for hook in _global_hooks()]
        if any(parts.hooks) or any("forward" in own for own in parts.attributes):
            for place, module in enumerate(parts.modules):
                serials = [self._serials.of(function) for _, function in _replacements(module)]
                if serials:
                    replaced += [-1 - place, *serials]
        for kind, forward in self._forwards.items():
            # A class's own forward, replaced for all its instances.
            if kind.forward is not forward:
                replaced.append(self._serials.of(kind.forward))
        settings = tuple([own.get(name) for own, name in parts.watched])
        return ModelState(states, settings, tuple(replaced))

    def named_settings(self) -> list[tuple[str, str, object]]:
        """Module, attribute and value of all that is watched, for a digest."""
        return [
            (name, attribute, module.__dict__.get(attribute))
            for name, module in self._model.named_modules()
            for attribute in _watched_attributes(module)
        ]


class _Serials:
    """Numbers functions. No number is given twice, though an address may be: the last ones are kept alive."""

    _KEPT = 256

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[object, int]] = OrderedDict()
        self._next = count()

    def of(self, function: object) -> int:
        """The function's number."""
        found = self._known.get(id(function))
        if found is None:
            found = self._known[id(function)] = function, next(self._next)
            if len(self._known) > self._KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(id(function))
        return found[1]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The dicts in which a model's modules keep what its state is made of. They live as long as the modules."""

    modules: list[nn.Module]
    attributes: list[dict[str, Any]]
    """Attributes of each module."""
    children: list[dict[str, nn.Module | None]]
    """Submodules of each module."""
    found: list[nn.Module | None]
    """All submodules when the lists were made."""
    counts: list[int]
    """Number of submodules that each module had then."""
    tensors: list[dict[str, Tensor | None]]
    """Parameters and buffers."""
    originals: list[Tensor]
    """Buffers from which modules compute frequencies at every pass; the results are not compared."""
    hooks: list[dict[int, Any]]
    watched: list[tuple[dict[str, Any], str]]

    @classmethod
    def of(cls, model: nn.Module) -> _Parts:
        # 1. Modules whose buffers are rewritten at every pass are kept apart: only their originals are compared.
        modules = list(model.modules())
        rewriting = {id(module) for module in modules if depends_on_length(module)}
        plain = [module for module in modules if id(module) not in rewriting]
        # 2. Dicts of all others.
        children = [module._modules for module in modules]
        return cls(
            modules=modules,
            attributes=[module.__dict__ for module in modules],
            children=children,
            found=list(chain.from_iterable(map(dict.values, children))),
            counts=list(map(len, children)),
            tensors=[
                *(cast("dict[str, Tensor | None]", module._parameters) for module in modules),
                *(module._buffers for module in plain),
            ],
            originals=[
                buffer
                for module in modules
                if id(module) in rewriting
                for name, buffer in module._buffers.items()
                if "original" in name and buffer is not None
            ],
            hooks=[*(m._forward_pre_hooks for m in modules), *(m._forward_hooks for m in modules)],
            watched=[(module.__dict__, name) for module in modules for name in _watched_attributes(module)],
        )

    def are_all(self) -> bool:
        """Whether no submodule was added, removed or replaced since."""
        children = self.children
        return (
            list(chain.from_iterable(map(dict.values, children))) == self.found
            and list(map(len, children)) == self.counts
        )


def version(tensor: Tensor) -> int:
    """Counts writes to a tensor; 0 for one made in inference mode, which is not counted."""
    return 0 if tensor.is_inference() else tensor._version


def _watched_attributes(module: nn.Module) -> tuple[str, ...]:
    return tuple(
        name for name, value in module.__dict__.items() if isinstance(value, float) or name in _WATCHED
    )


def _global_hooks() -> list[object]:
    """Hooks on every module of the process."""
    return [
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_forward_hooks.values(),
    ]


def _replacements(module: nn.Module) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks around a module's forward, and the forward itself if it was replaced."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    found = [("hook", hook) for hook in hooks if getattr(hook, "__module__", "") not in _HARMLESS_HOOKS]
    if "forward" in module.__dict__:
        found.append(("forward", module.__dict__["forward"]))
    return found
