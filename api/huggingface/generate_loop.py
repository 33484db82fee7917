"""Hugging Face's own `generate` loop over prompts that are in the pool already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor

from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.request import Completion, Request
from kvtrie.api.huggingface.generate_arguments import (
    CACHE_ARGUMENTS,
    beginning,
    cache_argument,
    eos_tokens,
    refuse_unservable,
    settings_among,
    whole_mask,
)
from kvtrie.api.huggingface.pool_cache import PoolCache
from kvtrie.api.huggingface.tree_handle import TreeHandle
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.models.model_view import WAY_OUT
from kvtrie.prefix_tree import Root
from kvtrie.prefix_tree.errors import InputError, LibraryChanged
from kvtrie.prefix_tree.keys import TokenArray, as_tokens


class HuggingFaceLoop:
    """Prefills prompts in the engine's packed steps, then runs `model.generate` over them."""

    def __init__(self, facts: ModelFacts, memory: KvMemory, identity: ModelIdentity, engine: Engine) -> None:
        self._facts = facts
        self._memory = memory
        self._identity = identity
        self._engine = engine
        self._cache_argument = cache_argument(facts.model)

    def generate(
        self,
        inputs: Tensor | None,
        generation_config: Any,
        arguments: dict[str, Any],
        root: Root,
        readable: list[Root],
        tokenizer: Any = None,
    ) -> Any:
        """See `PrefixCachedModel.generate`; `arguments` are its other arguments.

        `tokenizer` is used for stop strings if `arguments` have none.
        """
        # 1. Refuse arguments that cannot be served, and fill in defaults.
        base: Any = self._facts.model
        continued = _take_handles(arguments)
        # Checked twice: the caller's arguments first, so that our error comes before transformers'; then with
        # generation defaults merged in.
        refuse_unservable(arguments, generation_config or base.generation_config)
        for name in CACHE_ARGUMENTS:
            arguments.pop(name, None)
        effective, _ = base._prepare_generation_config(generation_config, **settings_among(base, arguments))
        refuse_unservable({}, effective)
        if effective.stop_strings is not None and arguments.get("tokenizer") is None:
            if not hasattr(tokenizer, "get_vocab"):
                raise InputError(
                    "stop_strings need the model's transformers tokenizer: pass tokenizer=, or wrap with one"
                )
            arguments["tokenizer"] = tokenizer
        # 2. The prompts: tokens under the mask, on the model's device.
        mask = arguments.pop("attention_mask", None)
        if inputs is None:
            inputs = beginning(base, mask, effective)
        for name, given in (("input_ids", inputs), ("attention_mask", mask)):
            if isinstance(given, Tensor) and given.device != self._facts.device:
                raise InputError(f"{name} is on {given.device}, the model is on {self._facts.device}")
        kept = whole_mask(inputs, mask, effective)
        if mask is not None:
            arguments["attention_mask"] = kept.long()
        prompts = [as_tokens(row[keep].cpu().numpy()) for row, keep in zip(inputs, kept)]
        for handle in continued:
            handle.check_continued_by([prompt.tolist() for prompt in prompts])
        # 3. Prefill all prompts but their last tokens, as requests of the engine.
        columns = inputs.shape[1]
        new_tokens = self._new_tokens(effective, columns, generation_config, arguments)
        for prompt in prompts:
            self._engine.check(prompt, new_tokens)
        requests = [
            Request(tokens[:-1], root, readable, max_new_tokens=0, prefill_only=True) for tokens in prompts
        ]
        cache = PoolCache(self._memory, self._identity, columns - 1, eos_tokens(effective), self._engine.lock)
        waiting: list[Completion] = []
        try:
            for request in requests:
                waiting.append(self._engine.submit(request))
            self._engine.wait(waiting)
            cache.take_over(waiting)
            # 4. Hugging Face's loop over the computed rows.
            view = self._facts.view
            view.sync()
            # The class's own `generate`: the caller may have replaced the model's by the wrapper's.
            output = type(view.root).generate(
                view.root,
                inputs,
                generation_config=generation_config,
                **{self._cache_argument: cache},
                **arguments,
            )
            # 5. A loop that did not use the cache computed something else.
            if not cache.passes:
                raise LibraryChanged(
                    f"generate() of transformers {transformers.__version__} did not use the cache that kvtrie "
                    f"passed as {self._cache_argument}=. {WAY_OUT}"
                )
            if not isinstance(output, Tensor):
                for name in [name for name, value in output.items() if value is cache]:
                    output[name] = _handle(output.sequences, prompts, columns)
            return output
        finally:
            self._facts.view.restore_configs()
            # An interrupt may come at any point, so rows may belong to the cache, or still to their completions.
            cache.close()
            self._engine.discard(waiting)

    def _new_tokens(
        self, effective: Any, columns: int, generation_config: Any, arguments: Mapping[str, Any]
    ) -> int:
        """New tokens that Hugging Face's loop may produce after `columns` columns."""
        if effective.max_new_tokens is not None:
            return int(effective.max_new_tokens)
        base: Any = self._facts.model
        configured = (arguments.get("max_length"), getattr(generation_config, "max_length", None))
        if any(length is not None for length in (*configured, base.generation_config.max_length)):
            return max(0, int(effective.max_length) - columns)
        # By default the loop takes `max_length` as a number of new tokens, within the model's positions.
        positions = getattr(base.config, "max_position_embeddings", None)
        new_tokens = int(effective.max_length)
        return new_tokens if positions is None else max(0, min(new_tokens, positions - columns))


def _take_handles(arguments: dict[str, Any]) -> list[TreeHandle]:
    """Handles of earlier calls among the arguments, which name what the tree holds; taken out of them."""
    names = [name for name in CACHE_ARGUMENTS if isinstance(arguments.get(name), TreeHandle)]
    return [arguments.pop(name) for name in names]


def _handle(sequences: Tensor, prompts: list[TokenArray], columns: int) -> TreeHandle:
    """Names returned sequences, `[rows, columns]`, of prompts in `columns` columns with padding on the left.

    Their last token was not forwarded. Several sequences of a prompt, of beams too, follow one another.
    """
    each = sequences.shape[0] // len(prompts)
    rows = [row[columns - len(prompts[place // each]) : -1].tolist() for place, row in enumerate(sequences)]
    return TreeHandle(rows, sequences.shape[1] - 1)
