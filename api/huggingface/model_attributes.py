"""Attributes of a Hugging Face model that a wrapper has too, so that a text-generation pipeline can run on it."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from kvtrie.prefix_tree.errors import InputError


class ModelAttributes:
    """The wrapped model's own attributes. Moving, copying and pickling a wrapper are refused.

    `transformers.pipeline` runs on it, though it logs that it knows no class of this name.
    """

    model: Any
    """The model that was wrapped, unchanged."""

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """The model's generation config."""
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        """Device of the model and of the KV pool."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def hf_device_map(self) -> Any:
        """Device of each part of the model, by accelerate; AttributeError for a model without it."""
        return self.model.hf_device_map

    @property
    def input_modalities(self) -> Any:
        """The model's input modalities, e.g. `text`."""
        return self.model.input_modalities

    @property
    def output_modalities(self) -> Any:
        """The model's output modalities, e.g. `text`."""
        return self.model.output_modalities

    def can_generate(self) -> bool:
        """Whether the model can generate; a pipeline asks."""
        return bool(self.model.can_generate())

    def _prepare_generation_config(self, *args: Any, **arguments: Any) -> Any:
        # For pipelines of transformers 5.17.
        return self.model._prepare_generation_config(*args, **arguments)

    def to(self, *args: Any, **arguments: Any) -> NoReturn:
        """Moving is refused: the KV pool stays on the device on which the model was wrapped.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"a PrefixCachedModel stays on {self.device}, where its KV pool is; move the model first and wrap it "
            "then, and give a pipeline device=cached.device"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Copying and pickling are refused, by whatever module.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a PrefixCachedModel cannot be copied, pickled or sent to another process: it holds locks, a KV pool "
            "and connections of this one; copy or send its .model, and wrap that there"
        )
