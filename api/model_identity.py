"""Which model this is: digests of config, weights and active adapters, renewed when any of them changes.

Digesting reads every byte of the weights, so it is done once. Every call compares `(data_ptr, _version)` of
every parameter and the adapters' state; only a difference digests again. Writes through `.data` change
neither: after those, `refresh` must be called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kvtrie.api.model_facts import ModelFacts
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.shape import FIDELITIES

_VOLATILE = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"})
"""Config entries that do not change what the model computes, or that the namespace has a field for."""

_TunerState = tuple[tuple[str, ...], bool, tuple[str, ...], tuple[tuple[str, float], ...]]


@dataclass(frozen=True, slots=True)
class Digests:
    """What a model's own contents contribute to its namespaces."""

    weights: str
    adapter: str

    def describe(self, namespace: Namespace) -> bool:
        """Whether KV of this model belongs into `namespace`."""
        return (namespace.weights, namespace.adapter) == (self.weights, self.adapter)


class ModelIdentity:
    """Namespaces of one wrapped model, whose KV is stored in `kv_format`."""

    def __init__(self, facts: ModelFacts, chunk_tokens: int, kv_format: str = "raw") -> None:
        self._facts = facts
        self._chunk_tokens = chunk_tokens
        self._fidelity = FIDELITIES[kv_format]
        self._layout = facts.layout()
        self._config = _config_digest(facts.config)
        self._revision = str(getattr(facts.config, "_commit_hash", None) or "")
        self._tuners = _tuner_layers(facts.model)
        self._known: dict[object, tuple[Digests, list[object]]] = {}
        """By state; each with the storages it names, so that none of those addresses can be used again."""
        self._weights_state: object = None
        self._weights = ""
        self._namespaces: dict[tuple[str, str, Digests], Namespace] = {}

    def namespace(self, scope: str, salt: str = "") -> Namespace:
        """The namespace of `scope` for the model as it is now."""
        digests = self.digests()
        known = self._namespaces.get((scope, salt, digests))
        if known is None:
            known = Namespace(
                scope=scope,
                salt=salt,
                model_config=self._config,
                weights=digests.weights,
                revision=self._revision,
                adapter=digests.adapter,
                kv_dtype=self._facts.dtype,
                layout=self._layout,
                chunk_tokens=self._chunk_tokens,
                fidelity=self._fidelity,
            )
            self._namespaces[scope, salt, digests] = known
        return known

    def refresh(self) -> None:
        """Forgets what was digested, so that the next call reads the weights again."""
        self._known.clear()
        self._weights_state = None

    def digests(self) -> Digests:
        """Digests of the model as it is now; reads weights only where something changed."""
        weights_state = _weights_state(self._facts.model)
        known = self._known.get((weights_state, self._adapter_state()))
        if known is not None:
            digests = known[0]
        else:
            # Adapters may have been added or removed since: their tensors came or went with them.
            self._tuners = _tuner_layers(self._facts.model)
            for _, tuner in self._tuners:
                if getattr(tuner, "disable_adapters", False) and getattr(tuner, "merged", False):
                    # As PEFT does itself, but in the next forward pass: by then the namespace was chosen.
                    tuner.unmerge()
            adapter_state = self._adapter_state()
            state = (weights_state, adapter_state)
            # Adapters share the base's weights: switching between them must not read those again.
            # Merging writes through `.data`, which no version counts: what is merged is part of the state.
            merged = tuple(merged for _, _, merged, _ in adapter_state)
            base_state = (merged, tuple((t.data_ptr(), _version(t)) for _, t in self._base_tensors()))
            if base_state != self._weights_state:
                self._weights = _digest_tensors(self._base_tensors())
                self._weights_state = base_state
                self._known.clear()
            digests = Digests(self._weights, self._adapter_digest())
            model = self._facts.model
            storages: list[object] = [t.untyped_storage() for t in chain(model.parameters(), model.buffers())]
            self._known[state] = digests, storages
        return digests

    def _adapter_state(self) -> tuple[_TunerState, ...]:
        return tuple(_tuner_state(tuner) for _, tuner in self._tuners)

    def _base_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights without adapters, under the names they have in the model without any."""
        adapters = {id(t) for _, tuner in self._tuners for _, t in _adapter_tensors(tuner, None)}
        model = self._facts.model
        # Buffers that no state dict has count too: `.to(bfloat16)` rounds RoPE's frequencies, loading does not.
        named = (model.named_parameters, model.named_buffers)
        for name, tensor in chain.from_iterable(tensors(remove_duplicate=False) for tensors in named):
            if id(tensor) not in adapters:
                yield name.replace(".base_layer.", "."), tensor

    def _adapter_digest(self) -> str:
        parts: list[tuple[str, Tensor]] = []
        said: list[object] = []
        for name, tuner in self._tuners:
            active, disabled, _, scaling = _tuner_state(tuner)
            if disabled or not active:
                continue
            said.append([name, type(tuner).__name__, active, [s for s in scaling if s[0] in active]])
            for adapter in active:
                parts += [(f"{name}.{part}", t) for part, t in _adapter_tensors(tuner, adapter)]
        if not said:
            return ""
        header = hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()
        return hashlib.sha256((header + _digest_tensors(iter(parts))).encode()).hexdigest()


def _tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """PEFT's layers, by what they all have, so that peft itself need not be installed."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and _containers(module)
    ]


def _containers(tuner: Any) -> tuple[str, ...]:
    """Attributes in which a PEFT layer keeps tensors by adapter name."""
    saved = ("modules_to_save",) if hasattr(tuner, "modules_to_save") else ()
    return tuple(getattr(tuner, "adapter_layer_names", ())) or saved


def _tuner_state(tuner: Any) -> _TunerState:
    """Active adapters in order, whether all are off, which are merged into the weights, and scalings."""
    scaling = getattr(tuner, "scaling", None) or {}
    return (
        tuple(tuner.active_adapters),
        bool(getattr(tuner, "disable_adapters", False)),
        tuple(getattr(tuner, "merged_adapters", ())),
        tuple(sorted((name, float(value)) for name, value in scaling.items())),
    )


def _adapter_tensors(tuner: Any, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one adapter in one layer, or of all adapters."""
    for container_name in _containers(tuner):
        container = getattr(tuner, container_name)
        if not isinstance(container, (nn.ModuleDict, nn.ParameterDict)):
            continue
        for name, part in container.items():
            if adapter is not None and name != adapter:
                continue
            if isinstance(part, Tensor):
                yield container_name, part
            else:
                for inner, tensor in part.state_dict(keep_vars=True).items():
                    yield f"{container_name}.{inner}", tensor


def _weights_state(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """`(data_ptr, _version)` of every parameter and buffer.

    Compared at every step, so by hand: `Module.parameters()` takes five times as long.
    """
    modules: list[nn.Module | None] = [model]
    tensors: list[Tensor | None] = []
    for module in modules:
        if module is not None:
            tensors += module._parameters.values()
            tensors += module._buffers.values()
            modules += module._modules.values()
    return tuple([(tensor.data_ptr(), _version(tensor)) for tensor in tensors if tensor is not None])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _config_digest(config: Any) -> str:
    entries = {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def _digest_tensors(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bytes; hashlib lets go of the GIL, so threads help."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        parts = sorted(threads.map(_digest_tensor, tensors))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest_tensor(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    flat = tensor.detach().contiguous().flatten().cpu()
    content = hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest() if flat.numel() else ""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}"
