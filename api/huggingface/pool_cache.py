"""The cache that Hugging Face's own `generate` loop runs on: rows of `SequenceKV` over the pool.

A *column* is the place of one token in the padded batch. The loop gets the whole prompt, and a cache that reports
the columns of all tokens but the last, so it forwards that one token per row and continues from there. Sampling,
processors, stopping, streamers, beams and assisted decoding are Hugging Face's, unchanged. Each forward pass of the
`ModelView` runs through `run_pass`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.request import Completion
from kvtrie.api.engine.sequence_kv import SequenceKV
from kvtrie.api.huggingface.generate_arguments import TOKENIZERS
from kvtrie.api.models.layer_attention import KEYWORD, PoolAttention
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.models.model_view import WAY_OUT, PassRunner
from kvtrie.chunk_kernels import prepare_step
from kvtrie.prefix_tree.errors import LibraryChanged, ModelOutputError, PoolExhausted


class PoolCache(Cache, PassRunner):  # type: ignore[misc]
    """KV of one `generate` call. It has no layers: attention writes to the pool and reads from it directly."""

    def __init__(
        self,
        memory: KvMemory,
        identity: ModelIdentity,
        length: int,
        eos: frozenset[int],
        lock: threading.RLock,
    ) -> None:
        """
        Args:
            memory: holds the rows' KV.
            identity: digests of the model; if they change, rows continue and no more chunks are stored.
            length: columns of the padded batch that are in the cache.
            eos: end tokens; a row that has generated one gets padding from then on, whose KV is not stored.
            lock: held whenever tree or pool change.
        """
        super().__init__(layers=[])
        self.memory = memory
        self._identity = identity
        self._eos = eos
        self._lock = lock
        self._rows: list[SequenceKV] = []
        self._length = length
        self._layers = memory.shape.layers
        self.passes = 0
        """Forward passes begun over this cache."""
        self._is_dirty = False
        """Whether a pass has begun and did not end well: KV that it wrote may not be finite."""
        self._has_generated = False
        self._input_ids: Tensor | None = None

    def take_over(self, prefilled: list[Completion]) -> None:
        """Takes over the rows of prompts that were prefilled but for their last token, one each.

        Raises:
            Exception: what ended one of the requests.
        """
        for completion in prefilled:
            if completion.error is not None:
                raise completion.error
        with self._lock:
            for completion in prefilled:
                assert completion.kv is not None
                self._rows.append(completion.kv)
                completion.kv = None

    # ---- what Hugging Face asks

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the padded batch that are cached."""
        return self._length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """As `get_seq_length`."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset a mask would have; none is built."""
        return self._length + query_length, 0

    def get_max_length(self, layer_idx: int = 0) -> int:
        """No fixed length."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """Never: rows join and leave, and the pool is read through plans made on the host."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Nothing is left to initialise."""
        return True

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` works for any number of columns: it does."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """No layer forgets columns here: attention applies each layer's window."""
        return [False] * self._layers

    @property
    def is_linear(self) -> list[bool]:
        """No layer keeps a state in place of columns."""
        return [False] * self._layers

    @property
    def is_dummy(self) -> list[bool]:
        """No layer reads another one's columns."""
        return [False] * self._layers

    @property
    def batch_size(self) -> int:
        """Rows."""
        return len(self._rows)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns the new keys and values unchanged; the attention function writes them into the pool.

        Raises:
            LibraryChanged: no pass over this cache has begun, so nothing would put them there.
        """
        if self._input_ids is None:
            raise LibraryChanged(
                "a layer put keys and values into kvtrie's cache outside a pass that kvtrie prepared: "
                f"transformers {transformers.__version__} runs generate() in a way that kvtrie does not know. "
                f"{WAY_OUT}"
            )
        return key_states, value_states

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i continues row `beam_idx[i]`: whole chunks stay shared, the last one is copied."""
        sources = beam_idx.tolist()
        with self._lock:
            old, kept = self._rows, set(sources)
            for index, row in enumerate(old):
                if index not in kept:
                    row.close()
            self._rows = []
            try:
                for source in sources:
                    self._rows.append(old[source] if source in kept else old[source].fork())
                    kept.discard(source)
            finally:
                # Empty unless a fork failed: then the rest is still ours to close.
                self._rows += [old[source] for source in kept]

    def crop(self, max_length: int | Tensor) -> None:
        """Forgets the last `-max_length` columns: candidates that were not accepted."""
        rejected = -int(max_length)
        if rejected < 0:
            rejected = self._length + rejected
        if rejected > 0:
            with self._lock:
                for row in self._rows:
                    row.crop(row.context_tokens - rejected)
            self._length -= rejected

    def activate_past_recording(self) -> None:
        """Nothing to record: `crop` needs no past."""

    # ---- around each forward pass

    def run_pass(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward pass over the columns that are new, whose KV is kept if it is finite.

        Raises:
            PoolExhausted: the pool has no room for the batch's new tokens.
            ModelOutputError: the logits are not finite; nothing of this pass is kept.
            LibraryChanged: transformers hands on other columns than kvtrie expects.
        """
        with self._lock:
            inputs = dict(kwargs)
            inputs[KEYWORD] = attention = self._begin(inputs)
            try:
                output = forward(*args, **inputs)
            finally:
                ids, self._input_ids = self._input_ids, None
            attention.check_reached()
            self._finish(ids, output)
            return output

    def _begin(self, inputs: dict[str, Any]) -> PoolAttention:
        """Prepares a forward pass over `inputs`, which it narrows to the columns that are new."""
        ids: Tensor | None = inputs.get("input_ids")
        if ids is None:
            raise LibraryChanged(
                f"generate() of transformers {transformers.__version__} forwards no input_ids; kvtrie's cache is "
                f"keyed on tokens. {WAY_OUT}"
            )
        self._expand(ids.shape[0])
        new = self._new_columns(ids, inputs.get("position_ids"))
        ids = ids[:, -new:]
        self.passes += 1
        for row in self._rows:
            if not row.reserve(new):
                raise PoolExhausted(
                    f"generate() runs {len(self._rows)} rows at once and the pool of {self.memory.pool.slots} "
                    "chunks is full; give PrefixCachedModel more memory=, or a smaller batch or fewer beams"
                )
        inputs["input_ids"] = ids
        inputs["attention_mask"] = None
        for name in TOKENIZERS:
            inputs.pop(name, None)
        inputs["position_ids"] = torch.tensor(
            [range(row.context_tokens, row.context_tokens + new) for row in self._rows], device=ids.device
        )
        step = prepare_step([row.step_part(new) for row in self._rows], self.memory.pool)
        self._input_ids = ids
        self._is_dirty = True
        return PoolAttention(self.memory.pool, step)

    def _finish(self, ids: Tensor | None, output: Any) -> None:
        """Commits the KV that the forward pass computed for `ids`, `[rows, new columns]`."""
        assert ids is not None
        if not torch.isfinite(output.logits[:, -1]).all():
            self.close()
            raise ModelOutputError(
                "the model's logits are not finite; nothing of this step was cached. Check the weights and dtype"
            )
        self._is_dirty = False
        model = self._identity.digests()
        for row, tokens in zip(self._rows, ids.tolist()):
            has_ended = self._has_generated and not self._eos.isdisjoint(tokens)
            if has_ended or not model.describe(row.root.namespace):
                row.seal()
            row.commit(tokens)
        self._has_generated = True
        self._length += ids.shape[1]
        self.memory.check_if_asked()

    def close(self) -> None:
        """Frees the rows' leases and private slots; whole chunks stay in the tree."""
        with self._lock:
            for row in self._rows:
                row.close(poisoned=self._is_dirty)
            self._rows = []

    def _new_columns(self, ids: Tensor, positions: Tensor | None) -> int:
        """How many of the last columns of `ids`, `[rows, columns]`, are not cached yet.

        `ids` may begin with columns that are cached: assisted decoding forwards the whole prompt first. The
        positions of the columns, `[rows or 1, columns]`, give the number of new ones, the same for each row.

        Raises:
            LibraryChanged: they do not.
        """
        if positions is not None and positions.dim() == 2 and positions.shape[1] >= ids.shape[1]:
            last: list[int] = positions[:, -1].expand(len(self._rows)).tolist()
            new = {position + 1 - row.context_tokens for position, row in zip(last, self._rows)}
            if len(new) == 1 and 1 <= min(new) <= ids.shape[1]:
                return min(new)
        raise LibraryChanged(
            f"generate() of transformers {transformers.__version__} forwards {ids.shape[1]} columns at positions "
            f"{None if positions is None else positions[:, -1].tolist()}, where the cached rows hold "
            f"{[row.context_tokens for row in self._rows]} tokens. {WAY_OUT}"
        )

    def _expand(self, batch: int) -> None:
        """Beams and several samples per prompt repeat each row; Hugging Face repeats the inputs only."""
        repeats, rest = divmod(batch, len(self._rows))
        assert rest == 0, (batch, len(self._rows))
        if repeats == 1:
            return
        prompts, self._rows = self._rows, []
        for index, row in enumerate(prompts):
            self._rows.append(row)
            try:
                for _ in range(repeats - 1):
                    self._rows.append(row.fork())
            except PoolExhausted:
                self._rows += prompts[index + 1 :]
                raise
