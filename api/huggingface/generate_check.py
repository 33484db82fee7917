"""Checks once, at wrapping, that `generate` through kvtrie computes what the model does.

Transformers changes how its loop passes a cache on, and a model's attention may use inputs that kvtrie does not
see. Either would give other tokens without an error. So a wrapper first generates for a prompt of one token and for
one of several, in a small memory of its own, and compares the logits with those of the model's own forward. That
costs seven forward passes over at most seven tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from kvtrie.api.engine.engine import Engine
from kvtrie.api.engine.engine_config import EngineConfig
from kvtrie.api.engine.kv_memory import KvMemory
from kvtrie.api.engine.scopes import Scopes
from kvtrie.api.huggingface.generate_arguments import refuse_unservable
from kvtrie.api.huggingface.generate_loop import HuggingFaceLoop
from kvtrie.api.models.model_facts import ModelFacts
from kvtrie.api.models.model_identity import ModelIdentity
from kvtrie.api.models.model_view import WAY_OUT
from kvtrie.api.traffic.traffic_watch import TrafficWatch
from kvtrie.prefix_tree import ChunkShape
from kvtrie.prefix_tree.errors import ModelOutputError, UnsupportedModel

_PROMPT_TOKENS = (1, 6)
_NEW_TOKENS = 2
"""The first one follows from the prompt, the second from the cache."""

_DRAWS = 3
"""Prompts tried of each length. Near a tie of a mixture's router, rounding alone may choose another expert."""

_CLOSE = {"float32": 1e-3, "float64": 1e-3, "lossy": 0.25}
"""Largest difference of logits, relative to the largest logit; `_CLOSE_16` for 16-bit KV."""

_CLOSE_16 = 2**-4


def check_generate(model: nn.Module, facts: ModelFacts, identity: ModelIdentity, shape: ChunkShape) -> None:
    """Generates a few tokens through kvtrie, and compares logits with those of `model`'s own forward.

    Args:
        model: as the caller has it, below any PEFT wrapper or with it.
        facts: of the model.
        identity: of the model.
        shape: of the chunks that the wrapper will hold.

    Raises:
        UnsupportedModel: they differ; names the model and the installed transformers.
    """
    base: Any = facts.model
    try:
        refuse_unservable({}, base.generation_config)
    except UnsupportedModel:
        # By its own defaults the model generates in a way that is refused at each call.
        return
    length = max(_PROMPT_TOKENS) + _NEW_TOKENS
    slots = 2 * -(-length // shape.chunk_tokens)
    memory = KvMemory(shape, max(2, slots) * shape.chunk_bytes, facts.device)
    watch = TrafficWatch.unrecorded(shape.chunk_tokens)
    engine = Engine(memory, facts, identity, EngineConfig(decode_graphs=False), watch)
    loop = HuggingFaceLoop(facts, memory, identity, engine)
    root = memory.tree.root(identity.namespace(Scopes().of_tenant(None)))
    for tokens in _PROMPT_TOKENS:
        if tokens + _NEW_TOKENS > facts.max_positions:
            continue
        off = []
        for draw in range(_DRAWS):
            ids = _prompt(facts, tokens, draw)
            try:
                output = loop.generate(ids, _plainly(), {"attention_mask": torch.ones_like(ids)}, root, [])
            except ModelOutputError:
                # Weights that are not loaded yet: a request will fail with this error.
                return
            off.append(_difference(model, output))
            if off[-1] <= _tolerance(facts, shape):
                break
        else:
            raise UnsupportedModel(
                f"{type(base).__name__}: for a prompt of {tokens} tokens, logits of generate() through kvtrie are "
                f"{min(off):.2g} of the largest logit off those of the model's own forward, with transformers "
                f"{transformers.__version__}. {WAY_OUT}"
            )


def _plainly() -> transformers.GenerationConfig:
    """Greedy decoding, whatever the model's own defaults are."""
    return transformers.GenerationConfig(
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )


def _prompt(facts: ModelFacts, tokens: int, draw: int) -> Tensor:
    """Tokens `[1, tokens]` across the vocabulary, none of them one that the config gives a meaning of its own."""
    config: Any = facts.model.config
    special = {
        value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))
    }
    usable = [token for token in range(min(facts.vocabulary, 4096)) if token not in special]
    chosen = [usable[(7919 * (draw + 1) * (place + 1) + place) % len(usable)] for place in range(tokens)]
    return torch.tensor([chosen], device=facts.device)


def _difference(model: nn.Module, output: Any) -> float:
    """Largest difference of a generation's logits from the model's own, relative to the largest of those."""
    found = torch.cat(list(output.logits)).float()
    ids = output.sequences[:, :-1]
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(found) :].float()
    if not torch.isfinite(own).all():
        return 0.0
    return float((found - own).abs().max() / own.abs().max().clamp(min=1.0))


def _tolerance(facts: ModelFacts, shape: ChunkShape) -> float:
    return _CLOSE["lossy"] if shape.kv_format != "raw" else _CLOSE.get(facts.dtype, _CLOSE_16)
