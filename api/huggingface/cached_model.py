"""`PrefixCachedModel`: a Hugging Face model that computes every shared prefix once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from kvtrie.api.byte_size import parse_bytes
from kvtrie.api.engine.completion_pieces import completion_pieces
from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.prompt import Prompt, PromptReader, is_messages
from kvtrie.api.engine.request import Completion, Request
from kvtrie.api.engine.sampling.parameters import Sampling
from kvtrie.api.engine.scopes import Scopes
from kvtrie.api.eviction import Eviction
from kvtrie.api.huggingface.generate_arguments import eos_tokens
from kvtrie.api.huggingface.generate_check import check_generate
from kvtrie.api.huggingface.generate_loop import HuggingFaceLoop
from kvtrie.api.huggingface.model_attributes import ModelAttributes
from kvtrie.api.models.compiled_model import refuse_compiled
from kvtrie.api.models.model_facts import model_facts
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.tiers.lower_tier import LowerTier
from kvtrie.api.tiers.open_tier import open_lower
from kvtrie.api.traffic.what_if import as_counters
from kvtrie.prefix_tree import Pin, Root, Snapshot, copy_tree
from kvtrie.prefix_tree.errors import InputError
from kvtrie.prefix_tree.keys import TokenArray
from kvtrie.store import store_key_from_environment


@dataclass(frozen=True, slots=True)
class Warmed:
    """The outcome of `PrefixCachedModel.warm`."""

    tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Tokens of the prompt that were cached before."""
    stored_tokens: int
    """Tokens of the prompt's whole chunks, which requests can reuse from now on."""
    pin: Pin | None
    """The pin on these chunks, to be passed to `unpin`; None if none was asked for."""


class PrefixCachedModel(ModelAttributes):
    """Wraps a causal LM so that prompts reuse the KV of what was computed before.

    Args:
        model: a transformers model in eval mode, or a PEFT model around one.
        tokenizer: lets prompts be text; anything with `encode` and `decode`. Messages need its
            `apply_chat_template`, and `generate(stop_strings=...)` needs a transformers tokenizer.
        memory: size of the KV pool, e.g. `"2GiB"`, on the model's device.
        chunk_tokens: tokens per chunk; smaller shares more, larger costs less to manage.
        kv_format: `"raw"` keeps keys and values as the model computes them: outputs are the model's own. `"int8"`
            and `"fp8"` are lossy, for about half the memory of a 16-bit model's KV: an element comes back within
            0.4% of the largest of its key or value (int8), or within about 6% of itself (fp8). What is cached and
            what is computed anew agree up to rounding, since both read stored bytes. Raw, int8 and fp8 KV are never
            shared. fp8 needs a GPU that has float8_e4m3fn, or the CPU.
        store: lower tier: `redis://...`, `http://...` or `unix:///...` (a sidecar), `memory://`, or a `LowerTier`.
        tenant: tenant of calls that name none.
        shared: shared scopes and the tenants that may read each, e.g. `{"tools": ["acme", "globex"]}`.
        salt: secret that makes chunk keys unguessable; equal in all processes that share a store.
        api_key: for a sidecar with tenants; default KVTRIE_API_KEY.
        pin_budget: most bytes each scope may pin, e.g. `"512MiB"`; None for no limit.
        eviction: policy, and minimum shares and quotas of scopes; plain LRU when left out.
        engine: limits of the serving loop.

    Raises:
        UnsupportedModel: names what cannot be served exactly.
        InputError: an argument out of range, a KV format the device lacks, a store URL that does not parse, or an
            unknown API key.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        memory: str | int = "2GiB",
        chunk_tokens: int = 64,
        kv_format: str = "raw",
        store: str | LowerTier | None = None,
        tenant: str | None = None,
        shared: Mapping[str, Collection[str]] | None = None,
        salt: str = "",
        api_key: str | None = None,
        pin_budget: str | int | None = None,
        eviction: Eviction | None = None,
        engine: EngineConfig | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._facts = model_facts(model)
        self._tenant = tenant
        self._scopes = Scopes(shared, salt)
        self._scopes.of_tenant(tenant)
        if not isinstance(chunk_tokens, int) or isinstance(chunk_tokens, bool):
            raise InputError(f"chunk_tokens must be a whole number of tokens, got {chunk_tokens!r}")
        shape = replace(self._facts.chunk_shape(chunk_tokens), kv_format=kv_format)
        memory_bytes = parse_bytes(memory)
        pin_bytes = None if pin_budget is None else parse_bytes(pin_budget)
        store_key = store_key_from_environment()
        self._identity = ModelIdentity(self._facts, chunk_tokens, kv_format)
        self._identity.namespace(self._scopes.of_tenant(tenant))
        check_generate(model, self._facts, self._identity, shape)
        self._lower = open_lower(store, api_key, shared or {}) if isinstance(store, str) else store
        try:
            self._memory = KvMemory(
                shape,
                memory_bytes,
                self._facts.device,
                self._lower,
                store_key,
                pin_bytes,
                eviction,
            )
            self.engine = Engine(self._memory, self._facts, self._identity, engine)
            self._loop = HuggingFaceLoop(self._facts, self._memory, self._identity, self.engine)
        except BaseException:
            if self._lower is not None:
                self._lower.close()
            raise
        self._closed = False

    # ---- generating

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        tenant: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Generates as `model.generate` does, without computing cached prefixes again.

        Takes what `model.generate` takes: `inputs` or `input_ids` `[batch, tokens]` padded on the left, or none to
        begin with the BOS token; `attention_mask` of 0 and 1; a generation config or its fields, processors,
        streamers, an assistant model, tokenizers. `stop_strings` are found with the wrapper's tokenizer where none
        is passed.

        Args:
            inputs: token ids, int64 `[batch, tokens]`.
            generation_config: a transformers `GenerationConfig`; default the model's.
            tenant: whose cache to use; default the wrapper's.
            **arguments: further arguments of `model.generate`.

        Returns:
            What `model.generate` returns: token ids, int64 `[batch * num_return_sequences, tokens]`, prompts
            included; or its output object for `return_dict_in_generate=True`, whose `past_key_values` names the
            sequences in the tree and has no KV.

        Raises:
            UnsupportedModel: names a generation mode that is not served.
            InputError: an empty prompt, a mask of other values, a token outside the vocabulary, too many positions,
                a wrong device, stop strings without a tokenizer.
            PoolExhausted: the batch does not fit the pool.
            ModelOutputError: the model produced NaN or infinity.
        """
        self._check_open()
        if inputs is None:
            inputs = arguments.pop("input_ids", None)
        elif arguments.get("input_ids") is not None:
            raise InputError("generate() got both inputs and input_ids; pass one")
        root, readable = self._roots(tenant)
        return self._loop.generate(inputs, generation_config, arguments, root, readable, self.tokenizer)

    def submit(
        self,
        prompt: Prompt,
        *,
        tenant: str | None = None,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        eos: Collection[int] | None = None,
        cache_salt: str = "",
        priority: int = 0,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
        stop: str | Sequence[str] = (),
        include_stop: bool = False,
    ) -> Completion:
        """Queues a prompt for continuous batching; `engine.step()`, `engine.run()` or an `EngineLoop` computes it.

        Does not wait for a step that is under way, unless the model was changed since the last request.

        Args:
            prompt: text or messages (with a tokenizer), token ids of one prompt as a list, tensor or array, or
                what a tokenizer returned for one prompt, whose left padding is dropped. Messages, a list of
                `{"role": ..., "content": ...}`, are rendered by the tokenizer's chat template, with the beginning
                of the model's reply. Text gets the tokenizer's special tokens, unless it begins with its BOS token:
                such a text was rendered by a chat template, which wrote all special tokens itself.
            tenant: whose cache to use; default the wrapper's.
            max_new_tokens: most tokens to produce.
            sampling: how tokens are chosen; default greedy.
            eos: tokens that end the completion; default the model's.
            cache_salt: shares cached prefixes only with the tenant's requests of the same salt, and reads no shared
                scope; "" shares with all of the tenant's requests without one.
            priority: requests of smaller numbers are admitted first among those of the same tenant.
            deadline_seconds: the request ends as `expired` if it is not done so long after this call; None for no
                end.
            request_id: a name for `engine.abort`.
            stop: strings that end the completion where its text has one of them; its text ends before it.
            include_stop: the text ends with that string.

        Returns:
            The completion, whose `tokens` grow with each step.

        Raises:
            InputError: see `generate`; stop strings or a constraint without a tokenizer.
            PoolExhausted: the prompt can never fit the pool.
            QueueFull: as many requests wait already as may; it says when to ask again.
            EngineStopped: the engine's loop has failed, or is about to end.
        """
        self._check_open()
        root, readable = self._roots(tenant, cache_salt)
        base: Any = self._facts.model
        sampling = sampling or Sampling()
        # Text costs time, and only these look at it.
        needs_text = bool(stop) or getattr(sampling, "constraint", None) is not None
        return self.engine.submit(
            Request(
                self._tokens(prompt),
                root,
                readable,
                max_new_tokens,
                eos_tokens(base.generation_config) if eos is None else eos,
                sampling,
                stop=(stop,) if isinstance(stop, str) else stop,
                include_stop=include_stop,
                tokenizer=self.tokenizer if needs_text else None,
                priority=priority,
                deadline_seconds=deadline_seconds,
                request_id=request_id,
            )
        )

    def stream(self, prompt: Prompt, **arguments: Any) -> Iterator[str | int]:
        """Yields a completion as it is computed: pieces of text for a prompt of text or messages, else token ids.

        Takes what `submit` takes. Leaving the loop early cancels the request. Pieces of text, joined, continue the
        prompt's text: with the space before the first word, whole characters, and without special tokens and the
        token that ended the completion.

        Raises:
            KvtrieError: what `submit` raises, or what ended the request.
        """
        completion = self.submit(prompt, **arguments)
        as_text = isinstance(prompt, str) or is_messages(prompt)
        pieces = completion_pieces(self.engine, completion, self.tokenizer if as_text else None)
        # Begun here: a generator that nobody has begun ends without its `finally`.
        next(pieces)
        return pieces

    @property
    def longest_sequence(self) -> int:
        """Most tokens that a prompt and its completion may have together: of the model, and of the pool."""
        shape = self._memory.shape
        return min(self._facts.max_positions, self._memory.pool.slots * shape.chunk_tokens)

    @property
    def vocabulary(self) -> int:
        """Token ids of prompts are below this."""
        return int(getattr(self._facts.config, "vocab_size", self._facts.vocabulary))

    # ---- the cache itself

    def warm(
        self,
        prompt: Prompt,
        *,
        tenant: str | None = None,
        scope: str | None = None,
        pin: bool | float = False,
        name: str = "",
    ) -> Warmed:
        """Computes a prompt's KV ahead of its first request.

        Args:
            prompt: as for `submit`. Its whole chunks are stored. Messages are rendered without the beginning of
                a reply, since another message may follow them.
            tenant: whose cache to warm; default the wrapper's.
            scope: a shared scope to warm instead of a tenant's.
            pin: True keeps it until `unpin`, a number for that many seconds.
            name: shown in dumps beside the pin.

        Returns:
            How much was cached, and the pin.

        Raises:
            InputError: as for `submit`; also a pin on less than a chunk or for no time; both tenant and scope.
            AccessDenied: no such shared scope.
            PinBudgetExceeded: the scope's pins would exceed `pin_budget`.
            PoolExhausted: the prompt can never fit the pool.
            ModelOutputError: the model produced NaN or infinity.
        """
        self._check_open()
        tokens = self._tokens(prompt, opens_reply=False)
        self.engine.check(tokens, 0)
        if scope is None:
            root, readable = self._roots(tenant)
        elif tenant is not None:
            raise InputError(f"warm() got tenant={tenant!r} and scope={scope!r}; pass one")
        else:
            root, readable = self._root(self._scopes.of_shared(scope)), []
        completion = self.engine.submit(Request(tokens, root, readable, max_new_tokens=0, prefill_only=True))
        try:
            self.engine.wait([completion])
        except BaseException:
            self.engine.discard([completion])
            raise
        if completion.error is not None:
            raise completion.error
        assert completion.kv is not None
        with self.engine.lock:
            try:
                node, pinned = completion.kv.node, None
                if pin:
                    pinned = self._memory.tree.pin(node, name, None if pin is True else pin)
            finally:
                completion.kv.close()
        return Warmed(
            len(tokens), completion.cached_tokens, node.depth * self._memory.shape.chunk_tokens, pinned
        )

    def unpin(self, pin: Pin) -> None:
        """Ends a pin. Does nothing if the pin has expired."""
        with self.engine.lock:
            self._memory.tree.unpin(pin)

    def refresh(self) -> None:
        """Digests the model again, after changes that leave no trace.

        These are writes through a tensor's `.data`, changed attributes of modules that are no floats, and changes
        of what a hook remembers. All else is noticed: weights written in place or replaced, modules, adapters
        (PEFT's hot swap too), scalings, epsilons, hooks, and a replaced `forward`.
        """
        with self.engine.lock:
            self._identity.refresh()

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Waits until the lower tier has written or dropped all that it was offered.

        Returns:
            False if `timeout_seconds` passed before.
        """
        return True if self._lower is None else self._lower.flush(timeout_seconds)

    def stats(self) -> dict[str, Any]:
        """Totals since the start, and the memory as it is now: `docs/operating.md` has each figure."""
        with self.engine.lock:
            memory, tree = self._memory, self._memory.tree
            device = tree.tiers[0]
            return {
                **dict.fromkeys(("requests", "prompt_tokens", "cached_tokens", "preemptions"), 0),
                **memory.counters,
                "evictions": sum(tree.evictions.values()),
                "device": {
                    "capacity_bytes": device.capacity_bytes,
                    "used_bytes": device.used_bytes,
                    "pending_bytes": device.pending_bytes,
                    "free_bytes": device.free_bytes,
                    "chunks": device.chunks,
                    "scopes": {scope: asdict(booked) for scope, booked in device.scopes.items()},
                },
                **tree.figures(),
                "lower": {} if self._lower is None else dict(self._lower.stats()),
                "what_if": self._what_if(),
            }

    def _what_if(self) -> dict[str, dict[int, float]]:
        """Each scope's hit ratio in blocks, had it 50%, 100%, 200% or 400% of the memory it has now."""
        chunk_bytes, scopes = self._memory.shape.chunk_bytes, self._memory.tree.tiers[0].scopes
        return self.engine.watch.what_if.hit_ratios(
            {scope: booked.used_bytes // chunk_bytes for scope, booked in scopes.items()}
        )

    def take_snapshot(self) -> Snapshot:
        """The tree as it is now, for `dump` and `explain`: at one moment, and all of it.

        Requests wait while it is copied, about half a microsecond a chunk; the rest is done beside them.
        """
        with self.engine.lock:
            counters = {**self._memory.counters, **as_counters(self._what_if())}
            copied = copy_tree(self._memory.tree)
        return copied.snapshot("engine", counters)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Writes `take_snapshot()` to a file as JSON, all or nothing: `kvtrie dump FILE` reads it.

        Raises:
            OSError: the file cannot be written.
        """
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(self.take_snapshot().to_json(), encoding="utf-8")
        partial.replace(target)

    def check(self) -> None:
        """Checks every invariant of tree and pool, in time proportional to the tree.

        Raises:
            AssertionError: names what does not hold.
        """
        with self.engine.lock:
            self._memory.check()

    # ---- life

    def close(self) -> None:
        """Cancels what is under way, stops the engine's loop, and lets go of the lower tier.

        Records that wait for the lower tier are written first, for at most 2 seconds: see `flush`.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self.engine.loop is not None:
                self.engine.loop.stop(drain=False)
            self.engine.cancel_all()
        finally:
            self.engine.watch.close()
            if self._lower is not None:
                self._lower.close()

    def __enter__(self) -> PrefixCachedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this PrefixCachedModel is closed; wrap the model again")
        if self._facts.model.training:
            raise InputError("the model is in training mode; call model.eval() first")
        refuse_compiled(self._facts.model)

    def _tokens(self, prompt: Prompt, *, opens_reply: bool = True) -> TokenArray:
        forward: Any = self._facts.model.forward
        return PromptReader(self.tokenizer, forward).tokens(prompt, opens_reply=opens_reply)

    def _root(self, scope: str, cache_salt: str = "") -> Root:
        salt = self._scopes.salt_of(scope, cache_salt)
        namespace = self._identity.known_namespace(scope, salt)
        if namespace is None:
            # The model has changed. It is digested between two steps: that may write to it.
            with self.engine.lock:
                namespace = self._identity.namespace(scope, salt)
        return self._memory.tree.root(namespace)

    def _roots(self, tenant: str | None, cache_salt: str = "") -> tuple[Root, list[Root]]:
        """The root of a tenant's namespace, and those of the shared scopes it reads."""
        who = self._tenant if tenant is None else tenant
        own = self._root(self._scopes.of_tenant(who), cache_salt)
        if cache_salt:
            return own, []
        return own, [self._root(scope) for scope in self._scopes.readable_by(who)]
