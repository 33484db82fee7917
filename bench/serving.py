"""Time to first token and throughput against Hugging Face's own ways, on one model in one process.

Peers: full prefill; `copy.deepcopy(DynamicCache)` + suffix, the reuse recipe of the transformers docs; and
`model.generate` over the whole batch without reuse.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from bench.measure import seconds
from kvtrie.api import PrefixCachedModel

SHARED_TOKENS = 2048
OWN_TOKENS = 64
BATCH = 32
NEW_TOKENS = 64
VOCABULARY = 32000


def run() -> dict[str, Any]:
    """Seconds and ratios; raises AssertionError before any timing if outputs differ."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=8,
            vocab_size=VOCABULARY,
            max_position_embeddings=4096,
        )
    ).eval()
    model.generation_config.eos_token_id = None
    shared = torch.randint(3, VOCABULARY, (SHARED_TOKENS,)).tolist()
    with torch.no_grad(), PrefixCachedModel(model, memory="3GiB") as cached:
        _gate(model, cached, shared + _own())
        cached.warm(shared)
        return {**_first_token(model, cached, shared), **_batch(model, shared)}


def _own() -> list[int]:
    found: list[int] = torch.randint(3, VOCABULARY, (OWN_TOKENS,)).tolist()
    return found


def _gate(model: Any, cached: PrefixCachedModel, prompt: list[int]) -> None:
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **options)
    for _ in range(2):
        found = cached.generate(ids, **options)
        assert torch.equal(found.sequences, expected.sequences), "gate: tokens differ"
        for ours, theirs in zip(found.logits, expected.logits):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def _first_token(model: Any, cached: PrefixCachedModel, shared: list[int]) -> dict[str, float]:
    kept = model(torch.tensor([shared]), past_key_values=DynamicCache(), logits_to_keep=1).past_key_values

    def hit(own: list[int]) -> int:
        completion = cached.submit(shared + own, max_new_tokens=1)
        cached.engine.run()
        return completion.tokens[0]

    def copied(own: list[int]) -> int:
        cache = copy.deepcopy(kept)
        return int(model(torch.tensor([own]), past_key_values=cache, logits_to_keep=1).logits.argmax())

    def full(own: list[int]) -> int:
        return int(model(torch.tensor([shared + own]), use_cache=True, logits_to_keep=1).logits.argmax())

    suffixes = [_own() for _ in range(12)]
    for own in suffixes[:2]:
        assert hit(own) == copied(own) == full(own), "gate: first tokens differ"
    # Interleaved, so that a slow spell of the machine hits all three.
    hits, copies, fulls = [], [], []
    for own in suffixes[2:]:
        hits.append(seconds(lambda own=own: hit(own)))
        copies.append(seconds(lambda own=own: copied(own)))
        fulls.append(seconds(lambda own=own: full(own)))
    hit_s, copy_s, full_s = (sorted(times)[len(times) // 2] for times in (hits, copies, fulls))
    return {
        "hit_ttft_seconds": hit_s,
        "deepcopy_ttft_seconds": copy_s,
        "full_prefill_ttft_seconds": full_s,
        "hit_over_deepcopy": hit_s / copy_s,
        "hit_over_full_prefill": hit_s / full_s,
    }


def _batch(model: Any, shared: list[int]) -> dict[str, float]:
    prompts = [shared + _own() for _ in range(BATCH)]
    found: list[list[int]] = []

    def reuse() -> None:
        with PrefixCachedModel(model, memory="3GiB") as cached:
            completions = [cached.submit(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts]
            cached.engine.run()
            found.extend(completion.tokens for completion in completions)

    reuse_s = seconds(reuse)
    expected = torch.empty(0)

    def plain() -> None:
        nonlocal expected
        expected = model.generate(torch.tensor(prompts), max_new_tokens=NEW_TOKENS, do_sample=False)

    plain_s = seconds(plain)
    same = sum(
        tokens == row for tokens, row in zip(found, expected[:, SHARED_TOKENS + OWN_TOKENS :].tolist())
    )
    assert same == BATCH, f"gate: only {same} of {BATCH} rows equal"
    return {
        "batch_seconds": reuse_s,
        "batch_without_reuse_seconds": plain_s,
        "batch_tokens_per_second": BATCH * NEW_TOKENS / reuse_s,
        "batch_throughput_ratio": plain_s / reuse_s,
    }
