"""What of a model can be compared at every step: where its tensors are, their versions, settings and hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from kvtrie.api.rope import depends_on_length

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
    """Ids of hooks and of replaced `forward`s, with their module's."""


class StateReader:
    """Reads one model's state, in one walk over its modules: `Module.parameters()` takes five times as long."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._watched: dict[int, tuple[str, ...]] = {}
        """By module id: attributes to compare."""

    def forget(self) -> None:
        """Looks for watched attributes anew: modules were added or replaced."""
        self._watched.clear()

    def read(self) -> ModelState:
        """The state now."""
        modules: list[nn.Module | None] = [self._model]
        tensors: list[Tensor | None] = []
        settings: list[object] = []
        replaced: list[int] = []
        watched = self._watched
        for module in modules:
            if module is None:
                continue
            own = module.__dict__
            tensors += own["_parameters"].values()
            modules += own["_modules"].values()
            names = watched.get(id(module))
            if names is None:
                names = watched[id(module)] = _watched_attributes(module)
            if "rope_type" in own and depends_on_length(module):
                # The module rewrites its frequencies at every pass; it computes them from these, which stay.
                tensors += [buffer for name, buffer in own["_buffers"].items() if "original" in name]
                continue
            tensors += own["_buffers"].values()
            settings += [own.get(name) for name in names]
            if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
                functions = [id(function) for _, function in _replacements(module)]
                if functions:
                    replaced += [id(module), *functions]
        return ModelState(
            tuple([(tensor.data_ptr(), version(tensor)) for tensor in tensors if tensor is not None]),
            tuple(settings),
            tuple(replaced),
        )

    def named_settings(self) -> list[tuple[str, str, object]]:
        """Module, attribute and value of all that is watched, for a digest."""
        return [
            (name, attribute, module.__dict__.get(attribute))
            for name, module in self._model.named_modules()
            if not depends_on_length(module)
            for attribute in _watched_attributes(module)
        ]

    def named_replacements(self) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks and replaced `forward`s, by module."""
        return [
            (f"{name}.{kind}", function)
            for name, module in self._model.named_modules()
            for kind, function in _replacements(module)
        ]


def version(tensor: Tensor) -> int:
    """Counts writes to a tensor; 0 for one made in inference mode, which is not counted."""
    return 0 if tensor.is_inference() else tensor._version


def _watched_attributes(module: nn.Module) -> tuple[str, ...]:
    return tuple(
        name for name, value in module.__dict__.items() if isinstance(value, float) or name in _WATCHED
    )


def _replacements(module: nn.Module) -> list[tuple[str, Callable[..., Any]]]:
    """What runs in or around a module's own forward."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    found = [("hook", hook) for hook in hooks if getattr(hook, "__module__", "") not in _HARMLESS_HOOKS]
    if "forward" in module.__dict__:
        found.append(("forward", module.__dict__["forward"]))
    return found
