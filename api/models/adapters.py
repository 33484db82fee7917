"""PEFT's adapters inside a model: which are served, their settings, and the digest of their contents.

PEFT is never imported, since it need not be installed: its layers are recognised by their attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from xxhash import xxh3_64_intdigest

from kvtrie.api.models.tensor_digest import digest_tensors, tensor_bytes
from kvtrie.prefix_tree.errors import UnsupportedModel

_OUTSIDE_LAYERS = {
    "alora_invocation_tokens": "is activated by tokens of the prompt (activated LoRA), outside the model's layers",
    "is_prompt_learning": "prepends learned tokens or keys",
}
"""Settings of an adapter with which the model's layers alone do not compute what PEFT's own model does."""

_SERVED = "kvtrie serves adapters that change weights only, such as LoRA"


class TunerState(NamedTuple):
    """Settings of one PEFT layer."""

    active: tuple[str, ...]
    disabled: bool
    merged: tuple[str, ...]
    """Adapters that are merged into the weights."""
    scaling: tuple[tuple[str, float], ...]


def refuse_unservable_adapters(model: nn.Module) -> None:
    """Names the first adapter of a model that does more than change what the model's layers compute.

    Raises:
        UnsupportedModel: says which, and why.
    """
    configs = getattr(model, "peft_config", None)
    for name, config in (configs or {}).items():
        kind = getattr(config, "peft_type", type(config).__name__)
        for setting, why in _OUTSIDE_LAYERS.items():
            if getattr(config, setting, None):
                raise UnsupportedModel(f"PEFT adapter {name!r} ({kind}) {why}; {_SERVED}")
    tuner = getattr(model, "base_model", None)
    if configs and any("generate" in vars(base) for base in type(tuner).__mro__ if "peft" in base.__module__):
        raise UnsupportedModel(
            f"PEFT's {type(tuner).__name__} has a generate() of its own, outside the model's layers; {_SERVED}"
        )


def tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """PEFT's layers in a model, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and _containers(module)
    ]


def tuner_state(tuner: Any) -> TunerState:
    """Present settings of a layer."""
    scaling = getattr(tuner, "scaling", None) or {}
    return TunerState(
        tuple(tuner.active_adapters),
        bool(getattr(tuner, "disable_adapters", False)),
        tuple(getattr(tuner, "merged_adapters", ())),
        tuple(sorted((name, float(value)) for name, value in scaling.items())),
    )


def adapter_tensors(tuner: Any, adapter: str | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one adapter in one layer, or of all adapters."""
    for container_name in _containers(tuner):
        container = attrgetter(container_name)(tuner)
        if hasattr(container, "items"):
            for name, part in container.items():
                if adapter is not None and name != adapter:
                    continue
                if isinstance(part, Tensor):
                    yield container_name, part
                elif isinstance(part, nn.Module):
                    for inner, tensor in part.state_dict(keep_vars=True).items():
                        yield f"{container_name}.{inner}", tensor


def active_tensors(tuners: list[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the adapters that take part in a forward pass."""
    for name, tuner in tuners:
        state = tuner_state(tuner)
        if not state.disabled:
            for adapter in state.active:
                for part, tensor in adapter_tensors(tuner, adapter):
                    yield f"{name}.{part}", tensor


def contents_checksum(tuners: list[tuple[str, Any]]) -> tuple[int, ...]:
    """Changes with the active adapters' contents, also where they were written through `.data`.

    PEFT's own hot swap writes so, which no version counter sees. Reads every byte; adapters are small.
    """
    tensors = [tensor for _, tensor in active_tensors(tuners)]
    if not tensors:
        return ()
    if any(tensor.device.type != "cpu" for tensor in tensors):
        # Bits as integers, each times its place: sums of values alone would miss signs and permutations.
        with torch.no_grad():
            sums: list[int] = torch.stack([_weighted_sum(tensor) for tensor in tensors]).tolist()
        return tuple(sums)
    return tuple(xxh3_64_intdigest(tensor_bytes(tensor)) for tensor in tensors)


def _weighted_sum(tensor: Tensor) -> Tensor:
    """int64 scalar on the tensor's device; integers wrap around."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8).long()
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    return (bits * (places * 2_654_435_761)).sum()


def adapter_digest(tuners: list[tuple[str, Any]]) -> str:
    """Digest of the active adapters: settings, names and contents; "" where there are none."""
    settings: list[object] = []
    for name, tuner in tuners:
        state = tuner_state(tuner)
        if state.active and not state.disabled:
            scaling = [item for item in state.scaling if item[0] in state.active]
            settings.append(
                [name, type(tuner).__name__, state.active, scaling, _settings(tuner, state.active)]
            )
    if not settings:
        return ""
    header = sha256(json.dumps(settings, default=str).encode()).hexdigest()
    return sha256((header + digest_tensors(active_tensors(tuners))).encode()).hexdigest()


def _containers(tuner: Any) -> tuple[str, ...]:
    """Attributes (with dots for those of a part) in which a PEFT layer keeps tensors by adapter name."""
    saved = ("modules_to_save",) if hasattr(tuner, "modules_to_save") else ()
    return tuple(getattr(tuner, "adapter_layer_names", ())) or saved


def _settings(tuner: Any, active: tuple[str, ...]) -> list[object]:
    """A layer's settings by adapter name that are no tensors: ranks, token indices, variants."""
    found: list[object] = []
    for attribute, by_adapter in sorted(tuner.__dict__.items()):
        if isinstance(by_adapter, dict) and not attribute.startswith("_"):
            for adapter in active:
                if adapter in by_adapter:
                    value = by_adapter[adapter]
                    plain = isinstance(value, (bool, int, float, str, list, tuple, type(None)))
                    found.append([attribute, adapter, value if plain else type(value).__name__])
    return found
