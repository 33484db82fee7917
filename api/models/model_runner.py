"""One forward pass of a wrapped model over packed rows."""

from __future__ import annotations

import inspect
import threading
from contextlib import nullcontext

import torch
from torch import Tensor

from kvtrie.api.models.layer_attention import KEYWORD, LanesAttention, LayerAttention, PoolAttention
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.chunk_kernels import ChunkPool, DecodeLanes, LaunchPlan, Step
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import TokenArray


class ModelRunner:
    """Runs steps of a model over one pool, one at a time."""

    def __init__(self, facts: ModelFacts, pool: ChunkPool, lock: threading.RLock) -> None:
        self.facts = facts
        self._pool = pool
        self._lock = lock
        self._keeps_rows = "logits_to_keep" in inspect.signature(facts.model.forward).parameters
        """Whether the head computes logits of chosen rows only; otherwise of all, and they are chosen here."""

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows; `resize_token_embeddings` changes it."""
        return int(getattr(self.facts.config, "vocab_size", self.facts.vocabulary))

    def check_tokens(self, tokens: TokenArray, max_new_tokens: int) -> None:
        """Checks that a prompt and its completion can be run.

        Raises:
            InputError: empty, a token outside the vocabulary, or beyond the model's positions.
        """
        facts = self.facts
        if len(tokens) == 0:
            raise InputError("the prompt is empty; a model needs at least one token")
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens must not be negative, got {max_new_tokens}")
        highest = int(tokens.max())
        vocabulary = self.vocabulary
        if highest >= vocabulary or int(tokens.min()) < 0:
            at = int(tokens.argmax()) if highest >= vocabulary else int(tokens.argmin())
            raise InputError(
                f"token id {int(tokens[at])} at position {at} is outside the vocabulary of {vocabulary}"
            )
        total = len(tokens) + max_new_tokens
        if total > facts.max_positions:
            raise InputError(
                f"{len(tokens)} prompt + {max_new_tokens} new tokens are {total}, beyond the {facts.max_positions} "
                f"positions for which {type(facts.model).__name__} is served exactly ({facts.limited_by})"
            )

    def forward(self, tokens: list[int], step: Step, last_rows: list[int]) -> Tensor:
        """Computes a step's rows, writing their KV into the pool.

        Args:
            tokens: `[rows]`, sequences one after the other, in the order given to `prepare_step`.
            step: from `prepare_step`.
            last_rows: rows to return logits for.

        Returns:
            fp32 logits `[len(last_rows), vocabulary]`.

        Raises:
            InputError: the model has been put into training mode.
            UnsupportedModel: a layer's forward was replaced since the model was wrapped.
        """
        if self.facts.model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        device = self.facts.device
        attention = PoolAttention(self._pool, step)
        with self._lock:
            logits = self._logits(
                torch.tensor(tokens, device=device),
                # The caller's positions are the step's own: no second copy to the device.
                step.positions,
                attention,
                torch.tensor(last_rows, device=device),
            )
        attention.check_reached()
        return logits

    def forward_lanes(self, lanes: DecodeLanes, launch: LaunchPlan) -> Tensor:
        """As `forward`, for a step whose inputs are in lanes on the device: fp32 logits `[lanes, vocabulary]`.

        Device work only, so that it can be captured.
        """
        return self._logits(lanes.ids, lanes.positions, LanesAttention(lanes, launch), 0)

    def _logits(
        self, ids: Tensor, positions: Tensor, attention: LayerAttention, keep: Tensor | int
    ) -> Tensor:
        # An engine's step has begun it already, where no interrupt can come between.
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            output = self.facts.view.root(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                **{KEYWORD: attention, **({"logits_to_keep": keep} if self._keeps_rows else {})},
            )
            logits: Tensor = output.logits[0]
            if not self._keeps_rows and isinstance(keep, Tensor):
                logits = logits[keep]
            logits = logits.float()
        return logits
