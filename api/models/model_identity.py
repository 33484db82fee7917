"""The identity of a model: digests of config, weights and active adapters, renewed when any of them changes.

Digesting reads every byte of the weights, so it is done once. Every call and every step compare the model's
`ModelState` and the active adapters; only a difference digests again. Not seen are writes through `.data`
(but for PEFT's hot swap), changed attributes that are no floats, and what a hook remembers: after those,
`refresh` must be called.
"""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from kvtrie.api.models.adapters import (
    TunerState,
    adapter_digest,
    adapter_tensors,
    contents_checksum,
    refuse_unservable_adapters,
    tuner_layers,
    tuner_state,
)
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_state import StateReader, version
from kvtrie.api.models.rope import depends_on_length
from kvtrie.api.models.tensor_digest import digest_tensors
from kvtrie.prefix_tree import Namespace
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.shape import FIDELITIES

_VOLATILE = frozenset(
    {
        "_experts_implementation",
        "_name_or_path",
        "attn_implementation",
        "dtype",
        "experts_implementation",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
"""Config entries that do not change the KV the model computes, or that the namespace has a field for."""

_KNOWN = 64
"""Combinations of adapters and settings whose digests are remembered."""

_NAMESPACES = 1024
"""Namespaces that are remembered, by scope and digests; others are made again when they are needed."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Fields of a namespace that depend on the model's contents."""

    weights: str
    adapter: str

    def describe(self, namespace: Namespace) -> bool:
        """Whether KV of this model may be stored in `namespace`."""
        return (namespace.weights, namespace.adapter) == (self.weights, self.adapter)


class ModelIdentity:
    """Namespaces of one wrapped model, whose KV is stored in `kv_format`."""

    def __init__(self, facts: ModelFacts, chunk_tokens: int, kv_format: str = "raw") -> None:
        self._facts = facts
        self._chunk_tokens = chunk_tokens
        self._fidelity = FIDELITIES[kv_format]
        self._layout = facts.layout()
        self._config_as_wrapped = copy.deepcopy(facts.config.__dict__)
        self._config_entries = _config_entries(facts.config)
        self._config = _digest_json(self._config_entries)
        self._revision = str(getattr(facts.config, "_commit_hash", None) or "")
        self._state = StateReader(facts.model)
        self._tuners = tuner_layers(facts.model)
        self._known: OrderedDict[object, Digests] = OrderedDict()
        """Digests of the present tensors, by all else that digests depend on."""
        self._known_tensors: object = None
        self._storages: list[object] = []
        """Storages of those tensors, kept alive so that no other tensor gets one of their addresses."""
        self._weights_state: object = None
        self._weights = ""
        self._nonce = uuid.uuid4().hex
        """Random digest in place of the code of hooks, which has no digest: such KV is shared with no process."""
        self._namespaces: OrderedDict[tuple[str, str, Digests], Namespace] = OrderedDict()

    def namespace(self, scope: str, salt: str = "") -> Namespace:
        """The namespace of `scope` for the model as it is now.

        Raises:
            InputError: the model's config is not the one that was wrapped.
            UnsupportedModel: an adapter was added that cannot be served.
        """
        self._check_config()
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
            if len(self._namespaces) > _NAMESPACES:
                self._namespaces.popitem(last=False)
        return known

    def refresh(self) -> None:
        """Forgets what was digested: the next call reads the weights again, and hooks count as new ones."""
        self._known.clear()
        self._known_tensors = None
        self._storages = []
        self._weights_state = None
        self._nonce = uuid.uuid4().hex
        self._state.forget()

    def digests(self) -> Digests:
        """Digests of the model as it is now; reads weights only where something changed."""
        state = self._state.read()
        key = (state.settings, state.replaced, self._adapter_state(), contents_checksum(self._tuners))
        if state.tensors == self._known_tensors and key in self._known:
            return self._known[key]
        # 1. Adapters may have been added or removed since: their tensors came or went with them.
        self._state.forget()
        self._tuners = tuner_layers(self._facts.model)
        refuse_unservable_adapters(self._facts.model)
        for _, tuner in self._tuners:
            if getattr(tuner, "disable_adapters", False) and getattr(tuner, "merged", False):
                # As PEFT does itself, but in the next forward pass: by then the namespace was chosen.
                tuner.unmerge()
        # 2. The state again: unmerging wrote weights.
        state, adapters = self._state.read(), self._adapter_state()
        key = (state.settings, state.replaced, adapters, contents_checksum(self._tuners))
        if state.tensors != self._known_tensors:
            self._known.clear()
            self._known_tensors = state.tensors
            self._storages = [tensor.untyped_storage() for tensor in self._all_tensors()]
        # 3. Adapters share the base's weights: switching between them must not read those again.
        #    Merging writes through `.data`, which no version counts: what is merged is part of the state.
        merged = tuple(tuner.merged for tuner in adapters)
        base_state = (merged, tuple((t.data_ptr(), version(t)) for _, t in self._base_tensors()))
        if base_state != self._weights_state:
            self._weights = digest_tensors(self._base_tensors())
            self._weights_state = base_state
            self._known.clear()
        # 4. Settings and hooks.
        behaviour = [
            self._weights,
            self._state.named_settings(),
            [self._nonce, *state.replaced] if state.replaced else [],
        ]
        digests = Digests(_digest_json(behaviour), adapter_digest(self._tuners))
        self._known[key] = digests
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return digests

    def _adapter_state(self) -> tuple[TunerState, ...]:
        return tuple([tuner_state(tuner) for _, tuner in self._tuners])

    def _all_tensors(self) -> Iterator[Tensor]:
        return chain(self._facts.model.parameters(), self._facts.model.buffers())

    def _base_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights without adapters, under the names they have in the model without any."""
        adapters = {id(t) for _, tuner in self._tuners for _, t in adapter_tensors(tuner, None)}
        model = self._facts.model
        # Buffers that no state dict has count too: `.to(bfloat16)` rounds RoPE's frequencies, loading does not.
        named = (model.named_parameters, model.named_buffers)
        for name, tensor in chain.from_iterable(tensors(remove_duplicate=False) for tensors in named):
            if id(tensor) not in adapters and not self._is_rewritten(name):
                yield name.replace(".base_layer.", "."), tensor

    def _is_rewritten(self, name: str) -> bool:
        """Whether a buffer holds frequencies that its module computes anew at every pass."""
        module, _, buffer = name.rpartition(".")
        return (
            buffer.endswith("inv_freq")
            and "original" not in buffer
            and depends_on_length(self._facts.model.get_submodule(module))
        )

    def _check_config(self) -> None:
        model: Any = self._facts.model
        config = model.config.get_text_config(decoder=True)
        if config.__dict__ == self._config_as_wrapped:
            return
        entries = _config_entries(config)
        if entries != self._config_entries:
            changed = sorted(
                name
                for name in entries.keys() | self._config_entries.keys()
                if entries.get(name) != self._config_entries.get(name)
            )
            raise InputError(
                f"the model's config changed after it was wrapped ({', '.join(changed)}); wrap the model again"
            )


def _config_entries(config: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in _VOLATILE and not name.endswith("_token_id")
    }


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
